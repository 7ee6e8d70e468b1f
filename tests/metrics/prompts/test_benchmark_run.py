"""The measures of a benchmark against an independent computation, and pictures that are made once."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.prompts.benchmark_run import BenchmarkPictures, ResizedImages, score_prompts
from mmdit.metrics.prompts.benchmarks import BenchmarkPrompt
from mmdit.metrics.prompts.networks import ImageNetwork, ImageTextNetwork
from mmdit.metrics.tasks import TaskRunner


@pytest.fixture
def prompts(tmp_path):
    subjects = {}
    for number, name in enumerate(("cat", "dog")):
        paths = []
        for copy in range(3):
            path = tmp_path / name / f"{copy}.png"
            path.parent.mkdir(exist_ok=True)
            values = np.random.default_rng([number, copy]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(path)
            paths.append(path)
        subjects[name] = tuple(paths)
    one = BenchmarkPrompt("one", "a {cat} on the beach", "a cat on the beach", (subjects["cat"],))
    two = BenchmarkPrompt("two", "a {dog} and a {cat}", "a dog and a cat", (subjects["dog"], subjects["cat"]))
    return [one, two]


@pytest.fixture
def pictures(prompts, prompted, tmp_path):
    made = BenchmarkPictures(tmp_path / "images", prompts, 2, {"seed": 0})
    assert made.make(TaskRunner(prompted, 1, seed=0), batch_size=3, progress=False) == 4
    return made


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_measures(pictures, prompts, clip_folder, dino_folder):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, ViTImageProcessor, ViTModel

    clip, dino = CLIPModel.from_pretrained(clip_folder).eval(), ViTModel.from_pretrained(dino_folder).eval()
    processors = CLIPImageProcessor.from_pretrained(clip_folder), ViTImageProcessor.from_pretrained(dino_folder)

    @torch.no_grad()
    def features(paths, which):
        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = processors[which](images=images, return_tensors="pt")["pixel_values"]
        if which == 0:
            return unit(clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output).numpy())
        return unit(dino(pixel_values=pixels).last_hidden_state[:, 0].numpy())

    @torch.no_grad()
    def words(text):
        tokens = AutoTokenizer.from_pretrained(clip_folder)([text], return_tensors="pt")
        given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        return unit(clip.text_projection(clip.text_model(**given).pooler_output).numpy())[0]

    wanted = {"dino": [], "clip_i": [], "clip_t": []}
    for prompt in prompts:
        files = [pictures.folder / f"{prompt.id}_{copy}.png" for copy in range(2)]
        for which, name in enumerate(("clip_i", "dino")):
            made = features(files, which)
            per_subject = [(made @ features(paths, which).T).mean(axis=1) for paths in prompt.subjects]
            wanted[name] += np.mean(per_subject, axis=0).tolist()
        wanted["clip_t"] += (features(files, 0) @ words(prompt.text)).tolist()
    report = score_prompts(
        pictures, clip=ImageTextNetwork(str(clip_folder)), dino=ImageNetwork(str(dino_folder)), progress=False
    )
    for name, values in wanted.items():
        assert report["measures"][name] == pytest.approx(np.mean(values), abs=1e-5)
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert report["measures"]["standard_error"][name] == pytest.approx(error, abs=1e-5)
    assert report["measures"]["num_images"] == 4
    pairs = []
    for paths in (prompts[0].subjects[0], prompts[1].subjects[0]):
        rows = features(paths, 1)
        pairs += [rows[i] @ rows[j] for i, j in combinations(range(3), 2)]
    assert report["controls"]["real_images"]["dino"] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert report["controls"]["copied_references"].keys() >= {"dino", "clip_i", "clip_t"}
    assert score_prompts(pictures, clip=None, dino=None, progress=False)["measures"]["num_images"] == 0


def test_pictures_are_made_once_and_do_not_depend_on_the_batch(pictures, prompts, prompted, tmp_path):
    before = {path.name: path.read_bytes() for path in pictures.folder.glob("*.png")}
    assert set(before) == {"one_0.png", "one_1.png", "two_0.png", "two_1.png"}
    (pictures.folder / "two_0.png").unlink()
    again = BenchmarkPictures(pictures.folder, prompts, 2, {"seed": 0})
    assert [made.file for made in again.missing()] == ["two_0.png"]
    assert again.make(TaskRunner(prompted, 1, seed=0), batch_size=1, progress=False) == 1
    pixels = np.asarray(Image.open(pictures.folder / "two_0.png")).astype(int)
    (pictures.folder / "kept.png").write_bytes(before["two_0.png"])
    assert np.abs(pixels - np.asarray(Image.open(pictures.folder / "kept.png"))).max() <= 1
    with pytest.raises(UserError, match=r"kept\.png: is no picture of this benchmark"):
        again.refuse_others()
    with pytest.raises(UserError, match="seed was 0, now 1"):
        BenchmarkPictures(pictures.folder, prompts, 2, {"seed": 1})


def test_real_pictures_are_cropped_and_resized(tmp_path):
    values = np.zeros((20, 60, 3), dtype=np.uint8)
    values[:, 20:40] = 200  # the square in the middle
    Image.fromarray(values).save(tmp_path / "a.png")
    (batch,) = ResizedImages("real", [tmp_path / "a.png"], 10).batches(4)
    assert batch.shape == (1, 10, 10, 3)
    assert (batch == 200).all()
