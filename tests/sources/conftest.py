"""Labellers with random weights, saved as their libraries save real ones; images as a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved_once import saved_once


@pytest.fixture(scope="session")
def labellers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labellers")


def _widen(model: torch.nn.Module) -> None:
    """Larger random weights: what libraries start from gives outputs that hardly depend on the image."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.3)


def _save_depth_anything(folder: Path, **changes: object) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        **changes,
    )
    model = DepthAnythingForDepthEstimation(config)
    _widen(model)
    torch.nn.init.constant_(model.head.conv3.bias, 1.0)  # else its ReLU may give zeros everywhere
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 42, "width": 42}, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(
        folder
    )


def _save_tokenizer(folder: Path) -> None:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "t", "h", "e</w>", "th", "the</w>", "task</w>", "is</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)


def _save_marigold(folder: Path, kind: str, **changes: object) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    words = folder.parent / f"{folder.name}_words"
    _save_tokenizer(words)
    getattr(diffusers, kind)(
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(words),
        default_denoising_steps=2,
        default_processing_resolution=16,
        **changes,
    ).save_pretrained(folder)


def _save_sam(folder: Path, kind: str = "Sam", **changes: object) -> None:
    import transformers
    from transformers import SamImageProcessor

    vision = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "output_channels": 8,
        "window_size": 2,
        "global_attn_indexes": [0],
        "num_pos_feats": 4,
        "mlp_dim": 8,
    }
    prompt = {"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 8,
        "mlp_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_depth": 1,
        "iou_head_hidden_dim": 8,
        "attention_downsample_rate": 1,
        **changes,
    }
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    model = getattr(transformers, f"{kind}Model")(config)
    _widen(model)
    model.save_pretrained(folder)
    SamImageProcessor(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}, mask_size={"longest_edge": 16}
    ).save_pretrained(folder)


def _save_sam2(folder: Path) -> None:
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2ImageProcessor, Sam2Model, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[2, 2, 2, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 32,  # an eighth of it tells one box's mask from another's
        "mlp_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_depth": 1,
        "iou_head_hidden_dim": 8,
        "attention_downsample_rate": 1,
    }
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    _widen(model)
    model.save_pretrained(folder)
    Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16}).save_pretrained(folder)


def _swin() -> object:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _save_mask2former(folder: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        id2label={0: "wall", 1: "sky", 2: "tree"},
        label2id={"wall": 0, "sky": 1, "tree": 2},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    _widen(model)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def _save_oneformer(folder: Path) -> None:
    from transformers import (
        CLIPTokenizer,
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        OneFormerProcessor,
    )

    words = folder.parent / "oneformer_words"
    _save_tokenizer(words)
    config = OneFormerConfig(
        backbone_config=_swin(),
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        text_encoder_width=32,
        text_encoder_vocab_size=16,
        text_encoder_num_layers=1,
        text_encoder_context_length=16,
        text_encoder_n_ctx=2,
        task_seq_len=16,
        max_seq_len=16,
        query_dec_layers=1,
        id2label={0: "wall", 1: "sky"},
        label2id={"wall": 0, "sky": 1},
    )
    model = OneFormerForUniversalSegmentation(config)
    _widen(model)
    model.save_pretrained(folder)
    names = {str(i): {"name": name, "isthing": 0} for i, name in enumerate(("wall", "sky"))}
    (words / "classes.json").write_text(json.dumps(names))
    images = OneFormerImageProcessor(
        size={"height": 64, "width": 64}, repo_path=str(words), class_info_file="classes.json", num_text=2
    )
    processor = OneFormerProcessor(images, CLIPTokenizer.from_pretrained(words), max_seq_length=16, task_seq_length=16)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def depth_anything(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "depth_anything", _save_depth_anything)


@pytest.fixture(scope="session")
def metric_depth_anything(labellers_dir: Path) -> Path:
    return saved_once(
        labellers_dir / "metric",
        lambda folder: _save_depth_anything(folder, depth_estimation_type="metric", max_depth=80),
    )


@pytest.fixture(scope="session")
def marigold_depth(labellers_dir: Path) -> Path:
    return saved_once(
        labellers_dir / "marigold_depth",
        lambda folder: _save_marigold(
            folder, "MarigoldDepthPipeline", prediction_type="depth", scale_invariant=True, shift_invariant=True
        ),
    )


@pytest.fixture(scope="session")
def marigold_normals(labellers_dir: Path) -> Path:
    return saved_once(
        labellers_dir / "marigold_normals",
        lambda folder: _save_marigold(folder, "MarigoldNormalsPipeline", prediction_type="normals"),
    )


@pytest.fixture(scope="session")
def sam(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "sam", _save_sam)


@pytest.fixture(scope="session")
def sam_hq(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "sam_hq", lambda folder: _save_sam(folder, "SamHQ", vit_dim=8))


@pytest.fixture(scope="session")
def sam2(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "sam2", _save_sam2)


@pytest.fixture(scope="session")
def mask2former(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "mask2former", _save_mask2former)


@pytest.fixture(scope="session")
def oneformer(labellers_dir: Path) -> Path:
    return saved_once(labellers_dir / "oneformer", _save_oneformer)


@pytest.fixture
def pixels() -> Callable[[int, int, int], np.ndarray]:
    """(seed, height, width) -> a smooth picture, uint8 (H, W, 3), so that resizing does not turn it into noise."""

    def make(seed: int, height: int, width: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC))

    return make
