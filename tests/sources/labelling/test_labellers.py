"""Every labeller with random weights, against its library called directly; pictures of two sizes."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdit.errors import UserError
from mmdit.modalities.depth import DepthCodec
from mmdit.sources.labelling.marigold import seed_of
from mmdit.sources.labelling.segmentation import NUM_SEGMENTS, paint_segments
from mmdit.sources.labelling.settings import LabellerSettings, MarigoldSettings, MaskSettings
from mmdit.sources.labelling.table import load_labellers
from mmdit.sources.relative_depth import RELATIVE_RANGE, RELATIVE_SCALE, from_disparity, from_relative_depth

# Random weights predict no quality and no stability: every mask is kept.
MASKS = MaskSettings(points_per_side=4, points_per_batch=8, iou_threshold=-1e6, stability_threshold=0.0)


def _load(modality, folder, **settings):
    (labeller,) = load_labellers({modality: str(folder)}, LabellerSettings(**settings), lambda text: None)
    return labeller


def _check_independence(labeller, images, atol=0.0):
    """A label is the same alone and in any batch, and differs from picture to picture."""
    ids = [f"n01/{i}" for i in range(len(images))]
    together = labeller.label(images, ids)
    alone = [labeller.label([image], [name])[0] for image, name in zip(images, ids, strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)
        assert one.shape[:2] == images[0].shape[:2]
    return together


@pytest.mark.parametrize(("convert", "space"), [(from_disparity, "disparity"), (from_relative_depth, "depth")])
def test_a_codec_of_the_labellers_space_gives_back_its_output(convert, space):
    raw = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)  # any scale and shift
    depth = convert(raw)
    assert depth.min() == pytest.approx(1)
    assert depth.max() == pytest.approx(RELATIVE_RANGE)
    stored = np.round(depth / RELATIVE_SCALE).astype(np.uint16) * np.float32(RELATIVE_SCALE)
    encoded = DepthCodec(space=space, quantiles=(0.0, 1.0)).encode(stored)[0].numpy()
    # The codec's 1 is near for disparity and far for depth, as the labeller's largest value is.
    np.testing.assert_allclose(encoded, (raw - raw.min()) / np.ptp(raw) * 2 - 1, atol=2e-3)


def test_a_map_of_one_value_is_one_value():
    assert np.unique(from_disparity(np.full((2, 2), 3.0))).size == 1
    assert np.unique(from_relative_depth(np.full((2, 2), 3.0))).tolist() == [1.0]


def test_depth_anything(depth_anything, pixels):
    labeller = _load("depth", depth_anything)
    images = [pixels(i, 30, 44) for i in range(3)]
    found = _check_independence(labeller, images, atol=1e-3)
    with torch.no_grad():
        inputs = labeller.processor(images=images[1], return_tensors="pt")
        disparity = labeller.model(**inputs).predicted_depth  # (1, h, w)
    assert disparity.shape[-1] > disparity.shape[-2]  # the aspect ratio is kept
    expected = F.interpolate(disparity[None], (30, 44), mode="bicubic", align_corners=False)[0, 0].numpy()
    order = np.argsort(expected.ravel())
    assert (np.diff(found[1].ravel()[order]) <= 1e-3).all()  # larger disparity = nearer
    np.testing.assert_allclose(
        (1 / found[1] - 1 / 32) / (1 - 1 / 32), (expected - expected.min()) / np.ptp(expected), atol=1e-3
    )
    assert labeller.provenance() | {"revision": ""} == {
        "model": str(depth_anything),
        "kind": "depth_anything",
        "revision": "",
        "licence": "unknown",
        "dtype": "float32",
        "space": "disparity",
        "metric": False,
    }


def test_metric_depth_is_in_metres(metric_depth_anything, pixels):
    labeller = _load("depth", metric_depth_anything)
    assert labeller.depth_scale == pytest.approx(0.002)  # 80 m in 16 bits
    image = pixels(0, 28, 28)
    (found,) = labeller.label([image], ["a"])
    with torch.no_grad():
        metres = labeller.model(**labeller.processor(images=image, return_tensors="pt")).predicted_depth
    expected = F.interpolate(metres[None], (28, 28), mode="bicubic", align_corners=False)[0, 0].clamp_min(0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert (labeller.provenance()["space"], labeller.provenance()["metric"]) == ("depth", True)


def test_marigold_depth(marigold_depth, pixels):
    labeller = _load("depth", marigold_depth)
    images = [pixels(i, 12, 20) for i in range(2)]
    found = _check_independence(labeller, images, atol=5e-3)
    output = labeller.runner.pipeline(
        Image.fromarray(images[1]), generator=torch.Generator().manual_seed(seed_of("n01/1"))
    )
    raw = output.prediction[0, ..., 0]
    np.testing.assert_allclose((found[1] - 1) / 31, (raw - raw.min()) / np.ptp(raw), atol=1e-3)
    assert labeller.provenance()["num_inference_steps"] == 2
    assert labeller.provenance()["processing_resolution"] == 16
    (other,) = labeller.label(images[1:], ["another id"])
    assert np.abs(other - found[1]).max() > 1e-2  # the id is the seed


def test_marigold_normals_and_ensembles(marigold_normals, pixels):
    labeller = _load("normal", marigold_normals)
    images = [pixels(i, 12, 20) for i in range(2)]
    found = _check_independence(labeller, images, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found[0], axis=-1), 1, atol=1e-5)
    output = labeller.runner.pipeline(
        Image.fromarray(images[0]), generator=torch.Generator().manual_seed(seed_of("n01/0"))
    )
    np.testing.assert_allclose(found[0], output.prediction[0], atol=1e-4)
    labeller.runner.ensemble_size, labeller.runner.steps = 3, 1
    ensembles = _check_independence(labeller, images, atol=1e-4)
    assert np.abs(ensembles[0] - found[0]).max() > 1e-3
    assert labeller.provenance()["ensemble_size"] == 3


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_mask_generation(kind, request, pixels):
    labeller = _load("segmentation", request.getfixturevalue(kind), masks=MASKS)
    images = [pixels(i, 24, 32) for i in range(2)]
    found = _check_independence(labeller, images)
    output = labeller.pipeline(
        Image.fromarray(images[0]), points_per_crop=4, pred_iou_thresh=-1e6, stability_score_thresh=0.0
    )
    covered = np.any([np.asarray(mask) for mask in output["masks"]], axis=0)
    assert covered.any()
    np.testing.assert_array_equal(found[0] > 0, covered)
    assert [entry["id"] for entry in labeller.classes] == list(range(64))
    nothing = _load("segmentation", request.getfixturevalue(kind), masks=dataclasses.replace(MASKS, iou_threshold=1e6))
    assert not nothing.label(images[:1], ["a"])[0].any()


@pytest.mark.parametrize(("kind", "names"), [("mask2former", ["wall", "sky", "tree"]), ("oneformer", ["wall", "sky"])])
def test_classes(kind, names, request, pixels):
    labeller = _load("segmentation", request.getfixturevalue(kind))
    images = [pixels(i, 40, 56) for i in range(2)]
    found = _check_independence(labeller, images)
    task = {"task_inputs": ["semantic"]} if kind == "oneformer" else {}
    with torch.no_grad():
        outputs = labeller.model(**labeller.processor(images=images[:1], return_tensors="pt", **task))
    masks = F.interpolate(outputs.masks_queries_logits, (384, 384), mode="bilinear", align_corners=False)
    if kind == "oneformer":
        masks = outputs.masks_queries_logits
    scores = torch.einsum("qc,qhw->chw", outputs.class_queries_logits[0].softmax(-1)[:, :-1], masks[0].sigmoid())
    scores = F.interpolate(scores[None], (40, 56), mode="bilinear", align_corners=False)[0]
    np.testing.assert_array_equal(found[0], scores.argmax(0).numpy())
    assert [entry["name"] for entry in labeller.classes] == names
    assert len({tuple(entry["color"]) for entry in labeller.classes}) == len(names)


def test_published_sam2_checkpoints_are_those_of_the_video_model(sam2, labellers_dir, pixels):
    """Their config.json says sam2_video; the image model is a part of it."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    folder = labellers_dir / "sam2_video"
    config = json.loads((sam2 / "config.json").read_text())
    parts = {name: config[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    memory = {"memory_attention_hidden_size": 8, "memory_attention_feed_forward_hidden_size": 8}
    memory |= {"memory_attention_num_layers": 1, "memory_encoder_hidden_size": 8, "memory_encoder_output_channels": 4}
    memory |= {"mask_downsampler_embed_dim": 8, "memory_fuser_embed_dim": 8, "memory_fuser_intermediate_dim": 8}
    memory |= {"memory_fuser_num_layers": 1, "memory_attention_rope_feat_sizes": [4, 4], "image_size": 64}
    video = Sam2VideoModel(Sam2VideoConfig(**parts, **memory))
    state = video.state_dict()
    state.update({key: value for key, value in load_file(sam2 / "model.safetensors").items() if key in state})
    video.load_state_dict(state)
    video.save_pretrained(folder)
    shutil.copy(sam2 / "preprocessor_config.json", folder)
    image = pixels(0, 24, 32)
    labels = [_load("segmentation", path, masks=MASKS).label([image], ["a"])[0] for path in (sam2, folder)]
    assert labels[0].any()
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize(
    ("modality", "kind"),
    [
        ("depth", "depth_anything"),
        ("normal", "marigold_normals"),
        ("segmentation", "sam2"),
        ("segmentation", "oneformer"),
    ],
)
def test_half_precision(modality, kind, request, pixels):
    labeller = _load(modality, request.getfixturevalue(kind), dtype="bfloat16", masks=MASKS)
    (found,) = labeller.label([pixels(0, 24, 32)], ["a"])
    assert found.dtype == (np.int64 if modality == "segmentation" else np.float32)
    assert np.isfinite(found).all()
    if modality == "normal":
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    assert labeller.provenance()["dtype"] == "bfloat16"


def test_segments_are_painted_small_on_large_with_labels_that_the_path_draws():
    large, small, side = np.zeros((3, 6, 8), bool)
    large[:, :6] = small[2:4, 2:4] = side[:2, 6:] = True
    labels = paint_segments([small, side, large], (6, 8), "n01/a")
    assert len({labels[0, 0], labels[2, 2], labels[0, 7], 0}) == 4
    assert labels[5, 7] == 0
    np.testing.assert_array_equal(labels == labels[2, 2], small)
    np.testing.assert_array_equal(labels == labels[0, 7], side)
    np.testing.assert_array_equal(labels == labels[0, 0], large & ~small)
    np.testing.assert_array_equal(labels, paint_segments([large, side, small], (6, 8), "n01/a"))
    others = {int(paint_segments([large], (6, 8), f"n01/{i}")[0, 0]) for i in range(200)}
    assert len(others) > 50  # of 63: no label is that of the largest segment
    # The very labels, so that no change of code or library recolours a dataset that is half done.
    assert [int(labels[0, 0]), int(labels[0, 7]), int(labels[2, 2])] == [39, 40, 7]


def test_more_masks_than_labels():
    masks = [np.arange(100).reshape(10, 10) == i for i in range(100)]
    labels = paint_segments(masks, (10, 10), "a")
    assert len(np.unique(labels)) == NUM_SEGMENTS + 1
    assert (labels == 0).sum() == 100 - NUM_SEGMENTS


def test_licences_are_said_before_anything_runs(depth_anything, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(depth_anything, folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    said = []
    load_labellers({"depth": str(folder)}, LabellerSettings(), said.append)
    assert len(said) == 1
    assert "CC BY-NC-4.0 is not for commercial use" in said[0]


def test_damaged_models_are_named(depth_anything, marigold_depth, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(depth_anything, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="can't be loaded"):
        _load("depth", folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        _load("depth", folder)
    shutil.copy(depth_anything / "preprocessor_config.json", folder)
    tensors = load_file(depth_anything / "model.safetensors")
    del tensors["head.conv3.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, first 'head\.conv3\.weight'"):
        _load("depth", folder)
    shutil.copytree(marigold_depth, tmp_path / "marigold")
    shutil.rmtree(tmp_path / "marigold/unet")
    with pytest.raises(UserError, match="can't be loaded"):
        _load("depth", tmp_path / "marigold")


def test_wrong_settings_are_named(marigold_depth, sam):
    with pytest.raises(UserError, match=r"--marigold\.processing_resolution is 15: give a multiple of 2"):
        _load("depth", marigold_depth, marigold=MarigoldSettings(processing_resolution=15))
    with pytest.raises(UserError, match=r"--marigold\.steps is 0"):
        _load("depth", marigold_depth, marigold=MarigoldSettings(steps=0))
    with pytest.raises(UserError, match=r"--masks\.points_per_side is 0"):
        _load("segmentation", sam, masks=MaskSettings(points_per_side=0))
    with pytest.raises(UserError, match="nothing to label"):
        load_labellers({})
