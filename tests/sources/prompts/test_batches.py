"""Images of a batch go through a network together, and what is found in each is what is found in it alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.sources.labelling.source import find_source
from mmdit.sources.prompts.dataset import make_prompts
from mmdit.sources.prompts.detection import Box
from mmdit.sources.prompts.settings import CropSettings, InterleavedSettings, PromptSettings, QualitySettings
from mmdit.sources.prompts.table import PARTS, load_pipeline

# Two shapes, where a processor keeps the ratio of the sides.
SIZES = [(40, 60), (80, 120), (60, 40), (40, 60), (40, 60)]


def _load(part, folder):
    """With larger weights: what libraries start from gives outputs that hardly depend on images and words."""
    source = find_source(str(folder), PARTS[part].option, PARTS[part].kinds)
    network = PARTS[part].build(source, PromptSettings())
    torch.manual_seed(0)
    for parameter in network.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return network


def _batches(model):
    """How many images each call of a transformers model takes, in a list that grows with the calls."""
    sizes = []

    def note(module, arguments, named):
        sizes.append(len(named["pixel_values"]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def _images(pixels):
    return [pixels(seed, *size) for seed, size in enumerate(SIZES)]


def _compare_boxes(found, expected):
    assert [box and box.label for box in found] == [box and box.label for box in expected]
    for box, other in zip(found, expected, strict=True):
        if box is not None:
            assert box.score == pytest.approx(other.score, abs=1e-4)
            np.testing.assert_allclose(box.corners, other.corners, atol=1e-4)


@pytest.mark.parametrize(("kind", "calls"), [("yolos", [5]), ("detr", [4, 1])])
def test_detectors(kind, calls, request, pixels):
    detector = _load("detector", request.getfixturevalue(kind))
    images, sizes = _images(pixels), _batches(detector.model)
    together = detector.detect(images, 0.0)
    assert sizes == calls
    for image, boxes in zip(images, together, strict=True):
        (alone,) = detector.detect([image], 0.0)
        _compare_boxes(boxes, alone)
    assert all(together)
    assert abs(together[0][0].score - together[1][0].score) > 1e-3  # it depends on the image
    assert detector.detect([], 0.0) == []


@pytest.mark.parametrize("kind", ["grounding_dino", "mm_grounding_dino"])
def test_phrases_of_different_lengths(kind, request, pixels):
    """The text of an image is padded to the longest; an image without phrases isn't looked at."""
    grounder = _load("grounder", request.getfixturevalue(kind))
    images, sizes = _images(pixels), _batches(grounder.model)
    phrases = [["red torus", "cone"], ["cone"], ["torus"], [], ["a red torus", "red cone", "torus"] * 6]
    together = grounder.ground(images, phrases, 0.0)
    assert sizes == [3, 1]
    for image, words, boxes in zip(images, phrases, together, strict=True):
        (alone,) = grounder.ground([image], [words], 0.0)
        _compare_boxes(boxes, alone)
    assert [len(boxes) for boxes in together] == [2, 1, 1, 0, 18]
    assert together[4][-1] is None  # no room for it in its text
    ((other,),) = grounder.ground(images[1:2], [["torus"]], 0.0)
    assert abs(other.score - together[1][0].score) > 1e-3  # it depends on the words
    assert grounder.ground(images[:2], [[], []], 0.0) == [[], []]


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
def test_different_numbers_of_boxes(kind, request, pixels):
    segmenter = _load("segmenter", request.getfixturevalue(kind))
    images, sizes = _images(pixels), _batches(segmenter.model)
    large, right, corner = (
        Box("torus", 1.0, corners) for corners in ((0.1, 0.2, 0.6, 0.9), (0.5, 0, 1, 1), (0, 0, 0.4, 0.5))
    )
    boxes, logits = [[large], [large, right, corner], [], [right, large], [corner]], []
    segmenter.model.register_forward_hook(lambda module, arguments, outputs: logits.append(outputs.pred_masks))
    together = segmenter.segment(images, boxes)
    assert sizes == [4]
    assert [[mask.shape for mask in masks] for masks in together] == [
        [size] * len(each) for size, each in zip(SIZES, boxes, strict=True)
    ]
    (batch,) = logits
    for row, number in enumerate([0, 1, 3, 4]):
        (alone,) = segmenter.segment([images[number]], [boxes[number]])
        torch.testing.assert_close(batch[row, : len(boxes[number])], logits[-1][0], atol=1e-4, rtol=1e-4)
        for mask, other in zip(together[number], alone, strict=True):
            assert (mask == other).mean() > 0.99  # a logit near zero may fall to the other side
    assert (logits[1][0] - logits[-1][0]).abs().max() > 1e-3  # it depends on image and box
    assert segmenter.segment(images[:2], [[], []]) == [[], []]


def test_clip(clip, pixels):
    judge = _load("clip", clip)
    images, sizes = _images(pixels), _batches(judge.model.vision_model)
    together = judge.embed_images(images)
    assert sizes == [5]
    alone = torch.cat([judge.embed_images([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2
    assert judge.embed_images([]).shape == (0, 8)


@pytest.fixture
def alike(tmp_path, pixels):
    """A dataset of five photographs of one size, all with captions."""
    rows = []
    for number, caption in enumerate(["a torus", "a cone", "a torus, a cone", "a red torus", "torus"]):
        path = tmp_path / f"data/train/rgb/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 40, 60)).save(path)
        path.with_suffix(".txt").write_text(caption)
        rows.append(json.dumps({"id": str(number), "rgb": f"rgb/{number}.png"}))
    (tmp_path / "data/dataset.json").write_text(json.dumps({"modalities": ["rgb"]}))
    (tmp_path / "data/train/manifest.jsonl").write_text("\n".join(rows))
    return tmp_path / "data"


def _crops(yolos, clip):
    settings = PromptSettings(
        crops=CropSettings(min_side=0, min_area=0.0, min_score=0.0, several=True),
        quality=QualitySettings(str(clip), 0.0),
    )
    return load_pipeline("crops", {"detector": str(yolos), "clip": str(clip)}, settings, lambda text: None)


def test_a_batch_is_one_call_of_each_network_of_crops(yolos, clip, alike):
    pipeline = _crops(yolos, clip)
    detector, judge = _batches(pipeline.detector.model), _batches(pipeline.judge.model.vision_model)
    assert make_prompts(alike, "train", pipeline, batch_size=3, accelerator="cpu").num_samples == 5
    assert detector == judge == [3, 2]


def test_a_batch_is_one_call_of_each_network_of_interleaved(llava, grounding_dino, sam, alike):
    models = {"captioner": str(llava), "grounder": str(grounding_dino), "segmenter": str(sam)}
    settings = PromptSettings(interleaved=InterleavedSettings(min_score=0.0), max_new_tokens=1)
    pipeline = load_pipeline("interleaved", models, settings, lambda text: None)
    grounder, segmenter = _batches(pipeline.grounder.model), _batches(pipeline.segmenter.model)
    assert make_prompts(alike, "train", pipeline, batch_size=5, accelerator="cpu").num_samples == 5
    assert grounder == segmenter == [4]  # the caption of one names nothing that the captioner lists


def test_a_batch_that_fails_is_described_one_by_one(yolos, clip, alike):
    pipeline = _crops(yolos, clip)

    def fail(module, arguments, named):
        if len(named["pixel_values"]) > 1:
            raise RuntimeError("too many images")

    sizes = _batches(pipeline.detector.model)
    pipeline.detector.model.register_forward_pre_hook(fail, with_kwargs=True)
    report = make_prompts(alike, "train", pipeline, batch_size=5, accelerator="cpu")
    assert (report.num_samples, report.bad) == (5, ())
    assert sizes == [5, 1, 1, 1, 1, 1]
