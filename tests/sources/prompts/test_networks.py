"""Each network of the pipelines with random weights, against its library called directly or against values made by hand."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mmdit.errors import UserError
from mmdit.sources.prompts.detection import Box, joined_phrases
from mmdit.sources.prompts.quality import CLIP_SCORE_SCALE, read_linear_head
from mmdit.sources.prompts.settings import PromptSettings, QualitySettings
from mmdit.sources.prompts.table import PARTS, load_pipeline


def _load(part, folder, **settings):
    from mmdit.sources.labelling.source import find_source

    source = find_source(str(folder), PARTS[part].option, PARTS[part].kinds)
    return PARTS[part].build(source, PromptSettings(**settings))


@pytest.mark.parametrize("kind", ["yolos", "detr"])
def test_detectors(kind, request, pixels):
    detector = _load("detector", request.getfixturevalue(kind))
    image = pixels(0, 40, 60)
    (boxes,) = detector.detect([image], 0.0)
    with torch.no_grad():
        outputs = detector.model(**detector.processor(images=image, return_tensors="pt"))
    (found,) = detector.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(40, 60)])
    expected = [
        (detector.model.config.id2label[int(label)].replace("_", " "), float(score), box.tolist())
        for label, score, box in zip(found["labels"], found["scores"], found["boxes"], strict=True)
        if detector.model.config.id2label[int(label)] != "N/A"
    ]
    expected.sort(key=lambda entry: -entry[1])
    assert [box.label for box in boxes] == [label for label, _, _ in expected]
    for box, (_, score, corners) in zip(boxes, expected, strict=True):
        assert box.score == pytest.approx(score, abs=1e-5)
        clipped = np.clip(np.array(corners) / [60, 40, 60, 40], 0, 1)
        np.testing.assert_allclose(box.corners, clipped, atol=1e-5)
    assert boxes
    assert detector.detect([image], 1.0) == [[]]
    assert detector.provenance()["kind"] == kind


def test_boxes_in_pixels_are_inside_and_never_empty():
    assert Box("a", 1, (0.1, 0.25, 0.5, 1.0)).pixels(8, 10) == (1, 2, 5, 8)
    assert Box("a", 1, (0.0, 0.0, 1.0, 1.0)).pixels(3, 7) == (0, 0, 7, 3)
    assert Box("a", 1, (1.0, 1.0, 1.0, 1.0)).pixels(3, 7) == (6, 2, 7, 3)
    assert Box("a", 1, (0.31, 0.31, 0.31, 0.31)).pixels(10, 10) == (3, 3, 4, 4)
    assert Box("a", 1, (0.1, 0.25, 0.5, 0.75)).area == pytest.approx(0.2)


def test_phrases_are_joined_as_grounding_dino_was_trained():
    text, spans = joined_phrases(["A red Torus", "St. Bernard?", "cone"])
    assert text == "a red torus. st bernard. cone."
    assert [text[slice(*span)] for span in spans] == ["a red torus", "st bernard", "cone"]


@pytest.mark.parametrize("kind", ["grounding_dino", "mm_grounding_dino"])
def test_grounding_dino(kind, request, pixels):
    """The best box of a phrase, by the library's own post-processing of its tokens."""
    grounder = _load("grounder", request.getfixturevalue(kind))
    image = pixels(1, 40, 60)
    phrases = ["red torus", "cone"]
    (boxes,) = grounder.ground([image], [phrases], 0.0)
    inputs = grounder.processor(images=image, text="red torus. cone.", return_tensors="pt")
    with torch.no_grad():
        outputs = grounder.model(**inputs)
    pieces = grounder.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert pieces == ["[CLS]", "red", "torus", ".", "cone", ".", "[SEP]"]
    scores = outputs.logits[0].sigmoid()
    whole = grounder.processor.post_process_grounded_object_detection(
        outputs, threshold=-1.0, text_threshold=1.0, target_sizes=[(1, 1)]
    )[0]["boxes"]
    for box, tokens in zip(boxes, ([1, 2], [4]), strict=True):
        values = scores[:, tokens].max(dim=1).values
        assert box.score == pytest.approx(float(values.max()), abs=1e-5)
        np.testing.assert_allclose(box.corners, whole[int(values.argmax())].clamp(0, 1).numpy(), atol=1e-5)
    assert [box.label for box in boxes] == phrases
    assert grounder.ground([image], [phrases], 0.9999) == [[None, None]]
    assert grounder.ground([image], [[]], 0.0) == [[]]
    # Beyond what the text model reads there are no tokens, and so no box.
    assert grounder.ground([image], [["red torus"] * 20], 0.0)[0][-1] is None


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
def test_masks_of_boxes(kind, request, pixels):
    segmenter = _load("segmenter", request.getfixturevalue(kind))
    image = pixels(2, 24, 32)
    boxes = [Box("torus", 1.0, (0.1, 0.2, 0.6, 0.9)), Box("cone", 1.0, (0.5, 0.0, 1.0, 1.0))]
    (masks,) = segmenter.segment([image], [boxes])
    assert [(mask.shape, mask.dtype) for mask in masks] == [((24, 32), np.dtype(bool))] * 2
    ((alone,),) = segmenter.segment([image], [boxes[1:]])
    assert (alone == masks[1]).mean() > 0.99
    assert (alone == masks[0]).mean() < 0.95, "nothing tells whose mask it is"
    assert segmenter.segment([image], [[]]) == [[]]


def test_captions_and_entities_of_a_model_that_chats(llava, random_llava, pixels):
    images = [pixels(number, 20 + 9 * number, 30) for number in range(3)]
    constant = _load("captioner", llava, max_new_tokens=2)
    assert constant.captions(images) == ["torus torus"] * 3
    assert constant.captions([]) == []
    one = _load("captioner", llava, max_new_tokens=1)
    questions = ["a torus <image> [INST] {x}", "x", "y"]  # what marks control tokens in a caption is no control token
    assert one.entities(images, questions, 4) == [["torus"]] * 3
    varied = _load("captioner", random_llava, max_new_tokens=6)
    together = varied.captions(images)
    assert [varied.captions([image])[0] for image in images] == together
    assert len(set(together)) > 1
    assert all("<" not in text for text in together)
    assert varied.provenance()["max_new_tokens"] == 6


def test_a_captioner_that_does_not_chat(blip, pixels, sam, grounding_dino):
    captioner = _load("captioner", blip, max_new_tokens=2)
    found = captioner.captions([pixels(0, 20, 30), pixels(1, 30, 20)])
    assert all("torus" in text for text in found)
    models = {"captioner": str(blip), "segmenter": str(sam), "grounder": str(grounding_dino)}
    with pytest.raises(UserError, match="has no chat template, so it can't be asked"):
        load_pipeline("interleaved", models, PromptSettings(), lambda text: None)


def test_clip_scores(clip, pixels, tmp_path):
    from transformers import CLIPModel

    torch.manual_seed(1)
    weight, bias = torch.randn(1, 8), torch.randn(1)
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    quality = QualitySettings(str(clip), 0.0, tmp_path / "head.safetensors", 0.0)
    judge = _load("clip", clip, quality=quality)
    image, texts = pixels(3, 30, 40), ["a red torus", "blue cone left"]
    (embedding,) = judge.embed_images([image])
    model = CLIPModel.from_pretrained(clip).eval()
    inputs = judge.processor(text=texts, images=Image.fromarray(image), return_tensors="pt", padding=True)
    with torch.no_grad():
        outputs = model(**inputs)
    cosines = outputs.logits_per_image[0] / model.logit_scale.detach().exp()
    torch.testing.assert_close(judge.embed_texts(texts) @ embedding, cosines, atol=1e-5, rtol=0)
    score = CLIP_SCORE_SCALE * max(0.0, float(cosines.max()))
    for least, refused in ((max(score - 1e-3, 0), False), (score + 1e-3, True)):
        other = _load("clip", clip, quality=QualitySettings(str(clip), least))
        assert [bool(reason) for reason in other.refuses_captions([embedding], [texts])] == [refused]
        assert other.refuses_image(embedding) == ""  # no head was given
    aesthetics = float(torch.nn.functional.normalize(outputs.image_embeds, dim=-1)[0] @ weight[0] + bias)
    for least, refused in ((aesthetics - 1e-3, False), (aesthetics + 1e-3, True)):
        other = _load("clip", clip, quality=QualitySettings(str(clip), 0.0, tmp_path / "head.safetensors", least))
        assert bool(other.refuses_image(embedding)) is refused
    # Each image has its own captions, however many.
    scores = [CLIP_SCORE_SCALE * max(0.0, float(cosine)) for cosine in cosines]
    between = _load("clip", clip, quality=QualitySettings(str(clip), sum(scores) / 2))
    refused = between.refuses_captions([embedding] * 3, [texts[:1], texts, texts[1:]])
    assert [bool(reason) for reason in refused] == [scores[0] < scores[1], False, scores[1] < scores[0]]
    assert between.refuses_captions([], []) == []
    long = judge.embed_texts(["a red torus " * 40])  # cut to what CLIP reads, not refused
    assert long.shape == (1, 8)


def test_a_stack_of_linear_layers_is_one(tmp_path):
    """LAION's predictor: layers.0, 2, … 10 without activations; their numbers are not in the order of their texts."""
    torch.manual_seed(0)
    layers = {0: torch.nn.Linear(8, 5), 2: torch.nn.Linear(5, 4), 10: torch.nn.Linear(4, 1)}
    path = tmp_path / "head.safetensors"
    save_file({f"layers.{n}.{k}": v for n, layer in layers.items() for k, v in layer.state_dict().items()}, path)
    weight, bias = read_linear_head(path, 8)
    x = torch.randn(8)
    torch.testing.assert_close(weight @ x + bias, torch.nn.Sequential(*layers.values())(x)[0])
    with pytest.raises(UserError, match=r"layers\.0\.weight is of shape \(5, 8\): a head on 16 values"):
        read_linear_head(path, 16)
    save_file({"scale": torch.ones(3)}, path)
    with pytest.raises(UserError, match="no linear head"):
        read_linear_head(path, 8)
    with pytest.raises(UserError, match="no such file"):
        read_linear_head(tmp_path / "none.safetensors", 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype, yolos, grounding_dino, sam, llava, clip, pixels):
    image, settings = pixels(0, 40, 60), {"dtype": dtype, "max_new_tokens": 1}
    assert _load("detector", yolos, **settings).detect([image], 0.0) != [[]]
    ((box,),) = _load("grounder", grounding_dino, **settings).ground([image], [["torus"]], 0.0)
    ((mask,),) = _load("segmenter", sam, **settings).segment([image], [[box]])
    assert mask.shape == (40, 60)
    captioner = _load("captioner", llava, **settings)
    assert captioner.captions([image]) == ["torus"]
    assert captioner.provenance()["dtype"] == dtype
    (embedding,) = _load("clip", clip, **settings).embed_images([image])
    assert embedding.dtype == torch.float32
    assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)


def test_wrong_models_are_named(yolos, clip, llava, tmp_path):
    def load(name, settings=None, **models):
        return load_pipeline(name, models, settings or PromptSettings(), lambda text: None)

    with pytest.raises(UserError, match=r"--detector .* is a 'clip', which gives no such labels here"):
        load("crops", detector=str(clip))
    with pytest.raises(UserError, match="--segmenter 'x': the pipeline 'crops' has no such part: it takes --captioner"):
        load("crops", detector=str(yolos), segmenter="x")
    with pytest.raises(UserError, match=r"unknown pipeline 'crop': did you mean 'crops'\?"):
        load("crop")
    head = PromptSettings(quality=QualitySettings(aesthetics=tmp_path / "head.safetensors"))
    with pytest.raises(UserError, match=r"--quality\.aesthetics needs the CLIP model"):
        load("crops", head, detector=str(yolos))
    folder = tmp_path / "adapter"
    shutil.copytree(yolos, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config\.json\)"):
        load("crops", detector=str(folder))
    folder = tmp_path / "code"
    shutil.copytree(llava, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder ran')")
    load("crops", detector=str(yolos), captioner=str(folder))  # the library's own class, never the folder's


def test_licences_are_said_before_anything_is_loaded(yolos, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(yolos, folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (folder / "model.safetensors").write_bytes(b"")
    said = []
    with pytest.raises(UserError, match="can't be loaded"):
        load_pipeline("crops", {"detector": str(folder)}, PromptSettings(), said.append)
    assert len(said) == 1
    assert said[0].startswith("detector: ")
    assert "not for commercial use" in said[0]
