"""The networks of the prompt pipelines, real classes with random weights, saved as their library saves real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved_once import saved_once
from tiny_encoders import make_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

# The first word is what a language model without a final norm writes: all its logits are alike.
WORDS = [
    "torus",
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<unk>",
    "a",
    "red",
    "cone",
    "Describe",
    "caption",
    "image",
    "List",
]
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}a"
)


@pytest.fixture(scope="session")
def networks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


def _save_yolos(folder: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    names = {0: "torus", 1: "cone", 2: "N/A", 3: "teddy_bear"}
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=6,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    model = YolosForObjectDetection(config)
    for parameter in model.class_labels_classifier.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _save_detr(folder: Path) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        id2label={0: "torus", 1: "cone"},
        label2id={"torus": 0, "cone": 1},
    )
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)


def _save_grounding_dino(folder: Path, kind: str = "GroundingDino") -> None:
    import transformers
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "red", "torus", "cone", "tor", "##us"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=7,
        num_feature_levels=4,
        max_text_len=32,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def _word_tokenizer():
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=512,
    )


def _save_llava(folder: Path, constant: bool = True) -> None:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        image_token_index=4,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    if constant:
        torch.nn.init.zeros_(model.model.language_model.norm.weight)
    else:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        _word_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


def _save_blip(folder: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "torus", "cone"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = BlipVisionConfig(**sizes, image_size=16, patch_size=8)
    text = BlipTextConfig(
        **sizes,
        vocab_size=len(words),
        encoder_hidden_size=16,
        bos_token_id=2,
        eos_token_id=0,
        sep_token_id=3,
        pad_token_id=0,
        max_position_embeddings=32,
    )
    model = BlipForConditionalGeneration(BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict()))
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[words.index("torus")] = 10
    model.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(images, BertTokenizerFast(vocab=str(folder / "vocab.txt"))).save_pretrained(folder)


def _save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPVisionConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        **sizes,
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=3,
        projection_dim=8,
    )
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="session")
def yolos(networks_dir: Path) -> Path:
    return saved_once(networks_dir / "yolos", _save_yolos)


@pytest.fixture(scope="session")
def detr(networks_dir: Path) -> Path:
    return saved_once(networks_dir / "detr", _save_detr)


@pytest.fixture(scope="session")
def grounding_dino(networks_dir: Path) -> Path:
    return saved_once(networks_dir / "grounding_dino", _save_grounding_dino)


@pytest.fixture(scope="session")
def mm_grounding_dino(networks_dir: Path) -> Path:
    return saved_once(
        networks_dir / "mm_grounding_dino", lambda folder: _save_grounding_dino(folder, "MMGroundingDino")
    )


@pytest.fixture(scope="session")
def llava(networks_dir: Path) -> Path:
    """Writes "torus", as often as it may."""
    return saved_once(networks_dir / "llava", _save_llava)


@pytest.fixture(scope="session")
def random_llava(networks_dir: Path) -> Path:
    """Writes words that depend on the image."""
    return saved_once(networks_dir / "random_llava", lambda folder: _save_llava(folder, constant=False))


@pytest.fixture(scope="session")
def blip(networks_dir: Path) -> Path:
    """Writes "torus", as often as it may; can't be asked."""
    return saved_once(networks_dir / "blip", _save_blip)


@pytest.fixture(scope="session")
def clip(networks_dir: Path) -> Path:
    return saved_once(networks_dir / "clip", _save_clip)


@pytest.fixture
def photographs(tmp_path: Path, pixels: Callable[[int, int, int], np.ndarray]) -> Path:
    """A dataset of four photographs in two folders, as 'data label' names them; three have captions."""
    root = tmp_path / "data"
    captions = {
        "a/one": "A red torus, left of a “cone”.\nein Kegel, ein torus – schön\n",
        "a/two": "teddy bear on a cone",
        "b/one": "nothing that is known",
    }
    rows = []
    for number, name in enumerate([*captions, "b/two"]):
        path = root / "train/rgb" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 40 + 8 * number, 60)).save(path)
        rows.append({"id": name, "rgb": f"rgb/{name}.png"})
        if name in captions:
            path.with_suffix(".txt").write_text(captions[name], encoding="utf-8")
    (root / "dataset.json").write_text(json.dumps({"modalities": ["rgb"], "licence": "CC0"}))
    (root / "train/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
