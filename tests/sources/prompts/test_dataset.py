"""The whole of both pipelines: a dataset of photographs in, its prompts.jsonl out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.cli.main import main
from mmdit.data.check import check_dataset
from mmdit.data.lines import Rules
from mmdit.data.prompts import read_prompts
from mmdit.errors import UserError
from mmdit.modalities.rgb import read_picture
from mmdit.sources.labelling.launcher import label_images
from mmdit.sources.labelling.settings import LabellerSettings
from mmdit.sources.labelling.table import load_labellers
from mmdit.sources.prompts.dataset import make_prompts
from mmdit.sources.prompts.settings import CropSettings, InterleavedSettings, PromptSettings, QualitySettings
from mmdit.sources.prompts.table import load_pipeline
from mmdit.storage.lock import FolderLock

ALL_BOXES = CropSettings(min_side=0, min_area=0.0, min_score=0.0, several=True)
ALL_ENTITIES = InterleavedSettings(min_score=0.0)


def _crops(detector, settings=ALL_BOXES, **models):
    quality = QualitySettings(models.get("clip"), 0.0)
    models = {part: str(folder) for part, folder in models.items()}
    run = PromptSettings(crops=settings, quality=quality, max_new_tokens=1)
    return load_pipeline("crops", {"detector": str(detector), **models}, run, lambda text: None)


def _make(data, pipeline, **settings):
    return make_prompts(data, settings.pop("split", "train"), pipeline, accelerator="cpu", **settings)


def _lines(data, split="train"):
    text = (data / split / "prompts.jsonl").read_text(encoding="utf-8")
    return {values["id"]: values for values in map(json.loads, text.rstrip("\n").split("\n"))}


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _stamps(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_crops(yolos, photographs):
    report = _make(photographs, _crops(yolos))
    (bad,) = report.bad
    assert str(bad).endswith(
        "b/two.png: no prompt: it has no caption: write one into a text file beside it, or name a --captioner"
    )
    assert (report.num_samples, report.dropped) == (3, {})
    assert check_dataset(photographs).problems == ()
    found = read_prompts(Rules(photographs, "train", None, None))
    one = found["a/one"]
    assert one.captions == ("A red torus, left of a “cone”.", "ein Kegel, ein torus – schön")
    assert {entity.phrase for entity in one.entities} <= {"torus", "cone"}
    assert one.entities
    image = Image.open(photographs / "train/rgb/a/one.png")
    for entity in one.entities:
        for caption, span in zip(one.captions, entity.spans, strict=True):
            assert (span is None) == (entity.phrase not in caption)
            assert span is None or caption[slice(*span)] == entity.phrase
        assert entity.mask is None
        (picture,) = entity.images
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.asarray(image.crop(entity.box)))
    assert found["b/one"].entities == ()
    assert sum(report.counts[1:]) == sum(bool(sample.entities) for sample in found.values())
    values = json.loads((photographs / "dataset.json").read_text())
    record = values["provenance"]["prompts"]["train"]
    assert record["pipeline"] == "crops"
    assert record["settings"] == {"min_side": 0, "min_area": 0.0, "min_score": 0.0, "several": True}
    assert record["networks"]["detector"]["model"] == str(yolos)
    assert record["networks"]["detector"]["revision"].startswith("sha256:")
    assert values["licence"] == "CC0; prompts by models under unknown"


def test_published_defaults_drop_small_images_and_say_so(yolos, photographs):
    with pytest.raises(UserError, match=r"every image was left out \(shorter side under --crops\.min_side 512: 4\)"):
        _make(photographs, _crops(yolos, CropSettings()))
    assert not (photographs / "train/prompts.jsonl").exists()
    assert check_dataset(photographs).problems == ()


def test_interleaved(llava, grounding_dino, sam, photographs, monkeypatch):
    models = {"captioner": str(llava), "grounder": str(grounding_dino), "segmenter": str(sam)}
    settings = PromptSettings(interleaved=ALL_ENTITIES, max_new_tokens=1)
    pipeline = load_pipeline("interleaved", models, settings, lambda text: None)
    report = _make(photographs, pipeline)
    assert (report.num_samples, report.bad) == (4, ())
    assert check_dataset(photographs).problems == ()
    found = read_prompts(Rules(photographs, "train", None, None))
    assert found["b/two"].captions == ("torus",)  # written, the others given
    assert found["a/two"].entities == ()  # its caption does not name the only thing that the model lists
    masked = [(name, entity) for name, sample in found.items() for entity in sample.entities]
    assert {name for name, _ in masked} <= {"a/one", "b/two"}
    assert masked
    for name, entity in masked:
        assert entity.phrase == "torus"
        image = np.asarray(Image.open(photographs / f"train/rgb/{name}.png"))
        mask = np.asarray(Image.open(entity.mask))
        assert mask.dtype == bool
        assert mask.shape == image.shape[:2]
        (picture,) = entity.images
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        expected = np.where(mask[..., None], image, 255)[inside]
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), expected)
        assert 0 <= entity.box[0] < entity.box[2] <= image.shape[1]
        assert 0 <= entity.box[1] < entity.box[3] <= image.shape[0]
    record = json.loads((photographs / "dataset.json").read_text())["provenance"]["prompts"]["train"]
    assert set(record["networks"]) == {"captioner", "grounder", "segmenter"}
    again = _stamps(photographs / "train")
    assert _make(photographs, pipeline).counts == report.counts
    changed = {name for name, stamp in _stamps(photographs / "train").items() if again[name] != stamp}
    assert changed <= {"prompts.jsonl", "prompt_sources.jsonl"}


def test_what_was_changed_is_described_again_and_nothing_else(yolos, photographs, pixels):
    pipeline, train = _crops(yolos), photographs / "train"
    _make(photographs, pipeline, batch_size=1)  # exactly the same, whatever else is described
    before = _stamps(train)
    Image.fromarray(pixels(77, 50, 44)).save(train / "rgb/a/one.png")
    (train / "rgb/a/two.txt").write_text("a torus and a cone")
    (train / "rgb/b/two.txt").write_text("a cone")
    os.utime(train / "rgb/b/one.png")  # another time, the same content
    report = _make(photographs, pipeline, batch_size=1)
    assert (report.num_samples, report.bad) == (4, ())
    changed = {
        name for name, stamp in _stamps(train).items() if before.get(name) != stamp and name.startswith("prompts/")
    }
    assert changed == {"prompts/a/one.json", "prompts/a/two.json", "prompts/b/two.json"}
    lines = _lines(photographs)
    assert list(lines) == ["a/one", "a/two", "b/one", "b/two"]
    assert lines["a/two"]["captions"] == ["a torus and a cone"]
    assert check_dataset(photographs).problems == ()
    fresh = photographs.parent / "fresh"
    shutil.copytree(photographs, fresh, ignore=shutil.ignore_patterns("prompt*", "crop"))
    _make(fresh, pipeline, batch_size=1)
    assert _files(fresh / "train/crop") == _files(train / "crop")  # nothing is left of entities that are gone
    assert (fresh / "train/prompts.jsonl").read_bytes() == (train / "prompts.jsonl").read_bytes()


def test_other_settings_and_models_are_refused(yolos, detr, blip, photographs):
    _make(photographs, _crops(yolos))
    before = _files(photographs)
    with pytest.raises(UserError, match=r"settings\.min_score was 0\.0, now 0\.5\): give the same, or delete prompts/"):
        _make(photographs, _crops(yolos, CropSettings(0, 0.0, 0.5, True)))
    with pytest.raises(UserError, match=r"networks\.detector\.model was '.*yolos', now '.*detr'"):
        _make(photographs, _crops(detr))
    with pytest.raises(UserError, match="captions was None, now 'none'"):
        _make(photographs, _crops(yolos, captioner=blip), captions="none")
    assert _files(photographs) == before
    # A captioner writes what is missing: it may be named later, and nothing else changes.
    report = _make(photographs, _crops(yolos, captioner=blip))
    assert (report.num_samples, report.bad) == (4, ())
    record = json.loads((photographs / "dataset.json").read_text())["provenance"]["prompts"]["train"]
    assert set(record["networks"]) == {"detector", "captioner"}
    _make(photographs, _crops(yolos))
    record = json.loads((photographs / "dataset.json").read_text())["provenance"]["prompts"]["train"]
    assert set(record["networks"]) == {"detector", "captioner"}  # which wrote one of the captions that are there
    shutil.rmtree(photographs / "train/prompts")
    (photographs / "train/prompts.jsonl").unlink()
    assert _make(photographs, _crops(detr)).num_samples == 3


def test_captions_of_a_prompts_file_survive(yolos, photographs):
    lines = [
        {"id": "a/one", "captions": ['a "torus"\nand a {cone} — naïve\u2028']},
        {"id": "b/two", "captions": ["x", "cone"]},
    ]
    given = photographs / "train/prompts.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = given.read_bytes()
    pipeline = _crops(yolos)
    report = _make(photographs, pipeline)
    assert report.num_samples == 4
    assert (photographs / "train/prompts.given.jsonl").read_bytes() == content
    found = _lines(photographs)
    assert found["a/one"]["captions"] == lines[0]["captions"]
    assert found["b/two"]["captions"] == ["x", "cone"]
    assert found["a/two"]["captions"] == ["teddy bear on a cone"]  # of its text file
    for entity in found["a/one"]["entities"]:
        assert lines[0]["captions"][0][slice(*entity["spans"][0])] == entity["phrase"]
    assert check_dataset(photographs).problems == ()
    # What is edited by hand is not overwritten.
    made = photographs / "train/prompts.jsonl"
    made.write_text(made.read_text().replace("teddy", "Teddy"))
    with pytest.raises(UserError, match=r"prompts\.jsonl: was changed since it was made, and would be overwritten"):
        _make(photographs, pipeline)
    assert "Teddy" in made.read_text()


def test_a_run_that_was_killed_before_it_recorded_what_it_wrote_goes_on(yolos, photographs):
    pipeline = _crops(yolos)
    _make(photographs, pipeline)
    values = json.loads((photographs / "dataset.json").read_text())
    values["provenance"]["prompts"]["train"]["sha256"] = None
    (photographs / "dataset.json").write_text(json.dumps(values))
    assert _make(photographs, pipeline).num_samples == 3


def test_entities_of_another_source_are_not_overwritten(yolos, photographs):
    line = {"id": "a/one", "captions": ["a torus"], "entities": [{"phrase": "torus", "spans": [[2, 7]]}]}
    (photographs / "train/prompts.jsonl").write_text(json.dumps(line))
    before = _files(photographs)
    with pytest.raises(UserError, match=r"prompts\.jsonl: has entities of another source \(sample 'a/one'\)"):
        _make(photographs, _crops(yolos))
    assert _files(photographs) == before


def test_photographs_as_they_come(yolos, blip, tmp_path, pixels, depth_anything):
    """Grey, CMYK, turned by EXIF, with a palette, transparent, damaged, empty; names that two folders share; labelled first."""
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    (photos / "b").mkdir()
    image = Image.fromarray(pixels(0, 48, 64))
    image.convert("L").save(photos / "a/grey.jpg")
    image.convert("CMYK").save(photos / "a/cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: 48 x 64 pixels are shown as 64 x 48
    image.save(photos / "a/turned.jpg", exif=exif)
    image.convert("P").save(photos / "b/palette.gif")
    image.convert("RGBA").save(photos / "b/grey.png")
    (photos / "b/cut.jpg").write_bytes((photos / "a/cmyk.jpg").read_bytes()[:500])
    (photos / "b/empty.png").write_bytes(b"")
    (photos / "a/grey.txt").write_text("\ufeffa torus", encoding="utf-8")
    (photos / "b/grey.txt").write_bytes("ein schöner torus".encode("latin-1"))
    labellers = load_labellers({"depth": str(depth_anything)}, LabellerSettings(), lambda text: None)
    data = tmp_path / "data"
    labelled = label_images(photos, data, labellers, accelerator="cpu", licence="CC-BY-4.0")
    assert {Path(entry.path).name for entry in labelled.bad} == {"cut.jpg", "empty.png"}
    report = _make(data, _crops(yolos, captioner=blip), captions=str(photos))
    (bad,) = report.bad
    assert "b/grey.txt: not UTF-8 text: invalid start byte" in bad.reason
    assert check_dataset(data).problems == ()
    lines = _lines(data)
    assert set(lines) == {"a/grey", "a/cmyk", "a/turned", "b/palette"}
    assert lines["a/grey"]["captions"] == ["a torus"]
    assert all("torus" in lines[name]["captions"][0] for name in ("a/cmyk", "a/turned", "b/palette"))
    for entity in lines["a/turned"]["entities"]:
        assert entity["box"][2] <= 48
        assert entity["box"][3] <= 64
    # Labelling may go on afterwards, and keeps what is said of the prompts.
    label_images(photos, data, labellers, accelerator="cpu", licence="CC-BY-4.0")
    values = json.loads((data / "dataset.json").read_text())
    assert "prompts" in values["provenance"]
    assert values["licence"] == (
        "images CC-BY-4.0; depth labels by a model under unknown; prompts by models under unknown"
    )


def test_boxes_are_of_the_image_as_it_is_shown(yolos, photographs, pixels):
    """A JPEG of the user's that the camera turned: the loader turns it too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(5, 32, 72)).convert("CMYK").save(photographs / "train/rgb/turned.jpg", exif=exif)
    (photographs / "train/rgb/turned.txt").write_text("a torus, a cone")
    (photographs / "train/manifest.jsonl").write_text('{"id": 7, "rgb": "rgb/turned.jpg"}\n')
    assert _make(photographs, _crops(yolos)).num_samples == 1
    (line,) = _lines(photographs).values()
    shown = read_picture(photographs / "train/rgb/turned.jpg")
    assert shown.shape == (72, 32, 3)
    assert line["entities"]
    for entity in line["entities"]:
        x0, y0, x1, y1 = entity["box"]
        picture = np.asarray(Image.open(photographs / "train" / entity["images"][0]))
        np.testing.assert_array_equal(picture, shown[y0:y1, x0:x1])


def test_large_photographs_are_described_smaller_and_cropped_whole(yolos, photographs, pixels):
    Image.fromarray(pixels(6, 1100, 1500)).save(photographs / "train/rgb/a/one.png")
    assert _make(photographs, _crops(yolos)).num_samples == 3
    entity = _lines(photographs)["a/one"]["entities"][0]
    x0, y0, x1, y1 = entity["box"]
    assert Image.open(photographs / "train" / entity["images"][0]).size == (x1 - x0, y1 - y0)
    assert x1 <= 1500
    assert y1 <= 1100
    assert max(x1, y1) > 60


def test_an_image_that_is_damaged_later_takes_no_other_with_it(yolos, photographs):
    (photographs / "train/rgb/a/two.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    report = _make(photographs, _crops(yolos), batch_size=4)
    assert [Path(entry.path).name for entry in report.bad] == ["two.png", "two.png"]
    assert set(_lines(photographs)) == {"a/one", "b/one"}


def test_a_network_that_fails_on_one_image_spares_the_others(yolos, photographs, monkeypatch):
    pipeline = _crops(yolos)
    detect = pipeline.detector.detect

    def fail(images, min_score):
        if any(image.shape[0] == 48 for image in images):
            raise RuntimeError("an image\nof its own kind")
        return detect(images, min_score)

    monkeypatch.setattr(pipeline.detector, "detect", fail)
    report = _make(photographs, pipeline, batch_size=4)
    assert ("a/two.png", "an image of its own kind") in [(entry.path[-9:], entry.reason) for entry in report.bad]
    assert set(_lines(photographs)) == {"a/one", "b/one"}


def test_filters_by_clip(yolos, blip, clip, photographs):
    quality = QualitySettings(str(clip), 1e9)
    models = {"detector": str(yolos), "clip": str(clip), "captioner": str(blip)}
    settings = PromptSettings(crops=ALL_BOXES, quality=quality, max_new_tokens=2)
    with pytest.raises(UserError, match=r"CLIP score below --quality\.min_clip_score: 4"):
        _make(photographs, load_pipeline("crops", models, settings, lambda text: None), captions="none")
    record = json.loads((photographs / "dataset.json").read_text())["provenance"]["prompts"]["train"]
    assert record["networks"]["clip"]["min_clip_score"] == 1e9


def test_ids_that_are_no_paths(yolos, photographs):
    """A manifest's ids are any texts; files named by them stay in the split's folder."""
    ids = ["../../out", "/abs", "a//b", ".hidden", "x.json/y", "x", "é/ü", "n" * 400, "con:*?", "a\nb"]
    rows = [{"id": name, "rgb": "rgb/a/one.png"} for name in ids]
    (photographs / "train/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = {path for path in photographs.parent.rglob("*") if photographs not in path.parents}
    report = _make(photographs, _crops(yolos))
    assert report.num_samples == len(ids)
    assert list(_lines(photographs)) == ids
    assert check_dataset(photographs).problems == ()
    assert {path for path in photographs.parent.rglob("*") if photographs not in path.parents} == before
    assert _make(photographs, _crops(yolos)).num_samples == len(ids)


def test_a_second_process_is_refused(yolos, photographs):
    with FolderLock(photographs, "mmdit data label"), pytest.raises(UserError, match="is writing here"):
        _make(photographs, _crops(yolos))


def test_wrong_input_is_named(yolos, photographs):
    pipeline = _crops(yolos)
    with pytest.raises(UserError, match=r"val/manifest\.jsonl: no such file; splits in .*: train"):
        _make(photographs, pipeline, split="val")
    with pytest.raises(UserError, match=r"--captions '\./nowhere': no such folder"):
        _make(photographs, pipeline, captions="./nowhere")
    with pytest.raises(UserError, match="--captions none leaves every image without a caption: name a --captioner"):
        _make(photographs, pipeline, captions="none")
    for path in photographs.rglob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="none of the 4 images has a caption"):
        _make(photographs, pipeline)
    row = {"id": "x", "depth": "x.png"}
    (photographs / "train/manifest.jsonl").write_text(json.dumps(row))
    (photographs / "dataset.json").write_text(json.dumps({"modalities": ["rgb", "depth"]}))
    with pytest.raises(UserError, match="no sample has an rgb image"):
        _make(photographs, pipeline)


def test_command(yolos, photographs, capsys):
    arguments = ["data", "prompts", "--data", str(photographs), "--detector", str(yolos), "--accelerator", "cpu"]
    arguments += ["--crops.min_side", "0", "--crops.min_area", "0", "--crops.min_score", "0", "--crops.several", "true"]
    assert main(arguments) == 2
    result = capsys.readouterr()
    assert result.out.count("no prompt: it has no caption") == 1
    assert result.err.splitlines()[-1].startswith("mmdit: error: 1 problems, listed above (")
    assert "3 images described, with 0/1/2/3/4+ entities" in result.err
    assert "describe 4: 100%" in result.err.replace("\r", "\n")
    assert main([*arguments, "--skip_bad"]) == 0
    assert main([*arguments, "--crops.min_area", "2"]) == 2
    assert "--crops.min_area is 2: give a number from 0 to 1" in capsys.readouterr().err
    assert main(["data", "prompts", "--data", str(photographs), "--pipeline", "crop"]) == 2
    assert main([*arguments[:4], "--detector", "someone/detector"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--detector 'someone/detector' can't be fetched from the Hub" in error
    assert "hf download someone/detector --local-dir FOLDER" in error


def test_killed_runs_go_on_in_two_processes(yolos, pixels, tmp_path, processes):
    """SIGKILL, then two processes as torchrun starts them: the files of a run that nothing disturbed."""
    data = tmp_path / "data"
    rows = []
    for number in range(16):
        name = f"n{number % 2}/{number:02d}"
        path = data / f"train/rgb/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 32, 32)).save(path)
        path.with_suffix(".txt").write_text("a torus, a cone")
        rows.append(json.dumps({"id": name, "rgb": f"rgb/{name}.png"}))
    (data / "dataset.json").write_text(json.dumps({"modalities": ["rgb"]}))
    (data / "train/manifest.jsonl").write_text("\n".join(rows))
    (data / "train/rgb/n1/03.png").write_bytes(b"no image")
    shutil.copytree(data, tmp_path / "whole")
    command = ["data", "prompts", "--data", str(data), "--detector", str(yolos), "--accelerator", "cpu"]
    command += ["--crops.min_side", "0", "--crops.min_area", "0", "--crops.min_score", "0", "--crops.several", "true"]
    command += ["--batch_size", "1"]  # exactly the same files, whatever is left to do

    def described() -> int:
        return len(list((data / "train/prompts").glob("*/*.json")))

    child = processes.start(command)
    while described() < 2:
        assert processes.poll(child) is None, f"it ended by itself: {child.text}"
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert processes.wait(child) == -signal.SIGKILL, child.text
    assert not (data / "train/prompts.jsonl").exists()
    group = processes.start_group([*command, "--devices", "2"], 2)
    said = [(processes.wait(child), child.text) for child in group]
    assert [code for code, _ in said] == [2, 0], said
    assert (said[0][1] + said[1][1]).count("03.png: not an image") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert _make(tmp_path / "whole", _crops(yolos), batch_size=1).num_samples == 15
    finally:
        torch.set_num_threads(threads)
    assert (data / "train/prompts.jsonl").read_bytes() == (tmp_path / "whole/train/prompts.jsonl").read_bytes()
    assert _files(data / "train/crop") == _files(tmp_path / "whole/train/crop")
    assert not list((data / "train").rglob("*.tmp"))
    assert json.loads((data / "dataset.json").read_text()) == json.loads((tmp_path / "whole/dataset.json").read_text())
