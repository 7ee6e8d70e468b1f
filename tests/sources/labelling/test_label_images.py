"""The whole of labelling: images in, a dataset out."""

from __future__ import annotations

import importlib.util
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
from mmdit.data.folder import AlignedFolder
from mmdit.data.manifest import read_dataset_info, read_manifest, relative_depth_space
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES, build_codec
from mmdit.sources.labelling.launcher import label_images
from mmdit.sources.labelling.settings import LabellerSettings, MaskSettings
from mmdit.sources.labelling.table import load_labellers
from mmdit.storage.lock import FolderLock

MASKS = MaskSettings(points_per_side=2, points_per_batch=4, iou_threshold=-1e6, stability_threshold=0.0)


def _load(**folders):
    models = {modality: str(folder) for modality, folder in folders.items()}
    return load_labellers(models, LabellerSettings(masks=MASKS), lambda text: None)


def _label(images, output, labellers, **settings):
    return label_images(images, output, labellers, accelerator="cpu", **settings)


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def image_folder(tmp_path, pixels):
    """Five images of two sizes in two class folders."""
    root = tmp_path / "images"
    for number, (name, size) in enumerate(
        {
            "n02/a.jpg": (30, 44),
            "n02/b.png": (44, 30),
            "n01/c.png": (30, 44),
            "n01/d.png": (44, 30),
            "n01/e.png": (30, 44),
        }.items()
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, *size)).save(root / name)
    return root


def test_photographs_become_a_dataset(depth_anything, marigold_normals, sam, tmp_path):
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        pytest.skip("needs the photographs of scikit-learn")
    photos = tmp_path / "photos"
    shutil.copytree(Path(spec.origin).parent / "datasets/images", photos, ignore=lambda d, names: {"__pycache__"})
    labellers = _load(depth=depth_anything, normal=marigold_normals, segmentation=sam)
    report = _label(photos, tmp_path / "out", labellers, size=64, licence="BSD-3-Clause")
    assert (report.num_samples, report.bad) == (2, ())
    assert check_dataset(tmp_path / "out").problems == ()
    values = json.loads((tmp_path / "out/dataset.json").read_text())
    assert values["modalities"] == ["rgb", "depth", "normal", "segmentation"]
    assert values["categories"] == []
    assert values["depth_scale"] == 0.0005
    assert len(values["segmentation_classes"]) == 64
    assert values["licence"].startswith("images BSD-3-Clause; depth labels by a model under unknown")
    for name, folder in (("depth", depth_anything), ("normal", marigold_normals), ("segmentation", sam)):
        assert values["provenance"]["labels"][name]["model"] == str(folder)
        assert values["provenance"]["labels"][name]["revision"].startswith("sha256:")
    item = AlignedFolder(tmp_path / "out")[0]
    assert item["present"].all()
    assert item["rgb"].shape == (3, 64, 64)
    photo = Image.open(photos / "china.jpg").crop((107, 0, 534, 427)).resize((64, 64), Image.Resampling.LANCZOS)
    difference = np.abs((item["rgb"].permute(1, 2, 0).numpy() + 1) * 127.5 - np.asarray(photo))
    assert difference.mean() < 3  # a crop that is half a pixel off


def test_classes_sizes_and_labels_of_each_image(depth_anything, mask2former, image_folder, tmp_path):
    labellers = _load(depth=depth_anything, segmentation=mask2former)
    report = _label(image_folder, tmp_path / "out", labellers, batch_size=4)
    assert report.num_samples == 5
    assert check_dataset(tmp_path / "out").problems == ()
    info = read_dataset_info(tmp_path / "out")
    assert info.categories == ("n01", "n02")
    samples = read_manifest(info, "train")
    assert [(sample.id, sample.category) for sample in samples] == [
        ("n01/c", 0),
        ("n01/d", 0),
        ("n01/e", 0),
        ("n02/a", 1),
        ("n02/b", 1),
    ]
    for sample in samples:
        raw = {
            name: build_codec(MODALITIES[name]).read(path, {"depth_scale": info.depth_scale}).values
            for name, path in sample.files.items()
        }
        (depth,), (labels,) = (labeller.label([raw["rgb"]], [sample.id]) for labeller in labellers)
        if sample.id != "n02/a":  # a JPEG is decoded once more by the PNG's reader: the same pixels too
            np.testing.assert_array_equal(raw["rgb"], np.asarray(Image.open(next(image_folder.glob(sample.id + ".*")))))
        np.testing.assert_allclose(raw["depth"], depth, atol=1.3e-3)
        np.testing.assert_array_equal(raw["segmentation"], labels)


def test_bad_images_are_listed_and_the_others_kept(depth_anything, image_folder, tmp_path):
    whole = (image_folder / "n01/c.png").read_bytes()
    (image_folder / "n01/c.png").write_bytes(whole[:200])
    (image_folder / "n01/d.png").write_bytes(b"")
    (depth,) = _load(depth=depth_anything)
    label = depth.label

    def fail_for_one(images, ids):
        if "n02/b" in ids:
            raise ValueError("this one has an extreme aspect ratio")
        found = label(images, ids)
        return [np.full_like(f, np.nan) if i == "n01/e" else f for f, i in zip(found, ids, strict=True)]

    depth.label = fail_for_one
    report = _label(image_folder, tmp_path / "out", [depth], batch_size=8)
    assert [(Path(b.path).name, b.part) for b in report.bad] == [
        ("c.png", "rgb"),
        ("d.png", "rgb"),
        ("e.png", "depth"),
        ("b.png", "depth"),
    ]
    assert str(report.bad[2]).endswith("no depth: the labeller gave NaN or infinity in torch.float32")
    assert "extreme aspect ratio" in str(report.bad[3])
    assert report.num_samples == 3
    assert check_dataset(tmp_path / "out").problems == ()
    samples = {
        sample.id: sample.files["depth"] is not None
        for sample in read_manifest(read_dataset_info(tmp_path / "out"), "train")
    }
    assert samples == {"n01/e": False, "n02/a": True, "n02/b": False}
    # The same command once the images are mended tries those again, and no other.
    (image_folder / "n01/c.png").write_bytes(whole)
    (image_folder / "n01/d.png").unlink()
    depth.label = label
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in _files(tmp_path / "out")}
    again = _label(image_folder, tmp_path / "out", [depth])
    assert (again.num_samples, again.bad) == (4, ())
    changed = {name for name, stamp in before.items() if (tmp_path / "out" / name).stat().st_mtime_ns != stamp}
    assert changed == {"train/manifest.jsonl", "train/sources.jsonl"}


def test_splits_and_modalities_are_added_and_labellers_never_mixed(
    depth_anything, marigold_depth, mask2former, image_folder, tmp_path
):
    out = tmp_path / "out"
    (depth,), (segmentation,) = _load(depth=depth_anything), _load(segmentation=mask2former)
    _label(image_folder, out, [depth], licence="CC0")
    first = _files(out / "train/depth")
    _label(image_folder, out, [segmentation], licence="CC0")
    assert _files(out / "train/depth") == first
    shutil.rmtree(image_folder / "n01")
    (image_folder / "n02").rename(image_folder / "n03")
    _label(image_folder, out, [depth], split="val", licence="mine")
    assert check_dataset(out).problems == ()
    info = read_dataset_info(out)
    assert info.modalities == ("rgb", "depth", "segmentation")
    assert info.categories == ("n01", "n02", "n03")
    assert info.provenance["images"]["val"]["licence"] == "mine"
    assert [s.files["segmentation"] for s in read_manifest(info, "val")] == [None, None]
    (other,) = _load(depth=marigold_depth)
    with pytest.raises(UserError, match=r"holds depth labels of another request \(model was"):
        _label(image_folder, out, [other])
    with pytest.raises(UserError, match="size was None, now 64"):
        _label(image_folder, out, [depth], size=64)


def test_a_split_holds_the_images_of_one_folder(marigold_depth, image_folder, tmp_path):
    """Another folder's names may be the same: its images would pass for labelled, and the first ones be forgotten."""
    labellers = _load(depth=marigold_depth)
    out, others = tmp_path / "out", tmp_path / "others"
    _label(image_folder, out, labellers, licence="CC0")
    shutil.copytree(image_folder / "n01", others / "n01")
    before = _files(out)
    with pytest.raises(UserError, match=r"the split 'train' holds images of '.*images', not '.*others'"):
        _label(others, out, labellers)
    assert _files(out) == before
    _label(image_folder / ".." / "images", out, labellers)  # the same folder, and no licence given this time
    info = read_dataset_info(out)
    assert info.provenance["images"]["train"]["licence"] == "CC0"
    assert len(read_manifest(info, "train")) == 5
    assert relative_depth_space(info) == "depth"  # what Marigold's depth is affine in


def test_the_output_is_not_among_the_images(depth_anything, image_folder):
    with pytest.raises(UserError, match="lies in --images"):
        _label(image_folder, image_folder / "labelled", _load(depth=depth_anything))
    assert not (image_folder / "labelled").exists()


def test_command(depth_anything, sam, image_folder, tmp_path, capsys):
    (image_folder / "n01/c.png").write_bytes(b"")
    arguments = [
        "data",
        "label",
        "--images",
        str(image_folder),
        "--output",
        str(tmp_path / "out"),
        "--accelerator",
        "cpu",
    ]
    arguments += ["--depth", str(depth_anything), "--normal", "none", "--segmentation", str(sam), "--size", "32"]
    arguments += [
        "--masks.points_per_side",
        "2",
        "--masks.iou_threshold",
        "-1000000",
        "--masks.stability_threshold",
        "0",
    ]
    assert main([*arguments, "--skip_bad"]) == 0
    assert "the file is empty" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    assert main(arguments) == 2
    result = capsys.readouterr()
    assert result.out.splitlines() == [f"{image_folder / 'n01/c.png'}: the file is empty"]
    notes = [line for line in result.err.splitlines() if line.startswith("mmdit: note: ")]
    assert [note.split(": ")[2] for note in notes[:2]] == ["depth", "segmentation"]
    assert all("revision sha256:" in note and "licence unknown" in note for note in notes[:2])
    assert len(notes) == 2
    error = result.err.splitlines()[-1]
    assert error.startswith(
        f"mmdit: error: 1 problems, listed above ({tmp_path / 'out/train'}: 4 images labelled; the same command tries the "
        "others again"
    )
    assert "label 5: 100%" in result.err.replace("\r", "\n")  # the progress, with its time left
    (image_folder / "n01/c.png").unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out/train'}: 4 images labelled\n"
    assert main(["data", "check", "--data", str(tmp_path / "out")]) == 0


def test_killed_runs_go_on_in_two_processes(depth_anything, pixels, tmp_path, processes):
    """SIGKILL, SIGTERM, then two processes as torchrun starts them: the files of a run that nothing disturbed."""
    images, train = tmp_path / "images", tmp_path / "out/train"
    for number in range(30):
        path = images / f"n{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 56, 56)).save(path)
    (images / "n1/bad.jpg").write_bytes(b"no image")
    command = ["data", "label", "--images", str(images), "--output", str(tmp_path / "out"), "--accelerator", "cpu"]
    command += ["--depth", str(depth_anything), "--normal", "none", "--segmentation", "none", "--batch_size", "2"]

    def maps(name: str = "depth") -> int:
        return len(list(train.glob(f"{name}/*/*.png")))

    left = []
    for sent, seen, code in ((signal.SIGKILL, 1, -signal.SIGKILL), (signal.SIGTERM, 7, 130)):
        child = processes.start(command)
        while maps() < seen:
            assert processes.poll(child) is None, f"it ended by itself: {child.text}"
            time.sleep(0.002)
        os.kill(child.pid, sent)
        assert processes.wait(child) == code, child.text
        assert not (train / "manifest.jsonl").exists()
        left.append(maps("rgb"))
    assert 0 <= left[0] <= left[1] < 30
    group = processes.start_group([*command, "--devices", "2"], 2)
    said = [(processes.wait(child), child.text) for child in group]
    assert [code for code, _ in said] == [2, 0], said
    assert (said[0][1] + said[1][1]).count("bad.jpg: not an image") == 1

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: another number rounds sums otherwise
    try:
        report = _label(images, tmp_path / "whole", _load(depth=depth_anything), batch_size=2)
    finally:
        torch.set_num_threads(threads)
    assert report.num_samples == 30
    assert _files(train / "rgb") == _files(tmp_path / "whole/train/rgb")
    assert _files(train / "depth") == _files(tmp_path / "whole/train/depth")
    assert (tmp_path / "out/dataset.json").read_text() == (tmp_path / "whole/dataset.json").read_text()
    assert check_dataset(tmp_path / "out").problems == ()


def test_bytes_do_not_depend_on_batches(depth_anything, marigold_normals, mask2former, image_folder, tmp_path):
    labellers = _load(depth=depth_anything, normal=marigold_normals, segmentation=mask2former)
    for batch_size in (1, 3, 5):
        _label(image_folder, tmp_path / f"out{batch_size}", labellers, batch_size=batch_size)
    for batch_size in (3, 5):
        assert _files(tmp_path / f"out{batch_size}") == _files(tmp_path / "out1")


def _stamps(out):
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*.png")}


def test_images_that_were_changed_are_labelled_again_and_no_others(depth_anything, pixels, image_folder, tmp_path):
    labellers, out = _load(depth=depth_anything), tmp_path / "out"
    _label(image_folder, out, labellers)
    before = _stamps(out)
    changed = image_folder / "n01/d.png"
    Image.fromarray(pixels(77, 44, 30)).save(changed)
    os.utime(changed, (1, 1))  # an older file took its place
    touched = image_folder / "n02/a.jpg"
    os.utime(touched)  # other times, the same content
    _label(image_folder, out, labellers)
    after = _stamps(out)
    assert {name for name in before if before[name] != after[name]} == {"train/rgb/n01/d.png", "train/depth/n01/d.png"}
    np.testing.assert_array_equal(np.asarray(Image.open(out / "train/rgb/n01/d.png")), pixels(77, 44, 30))
    _label(image_folder, tmp_path / "fresh", labellers)
    assert _files(tmp_path / "fresh/train/depth") == _files(out / "train/depth")
    _label(image_folder, out, labellers)
    assert _stamps(out) == after


def test_a_changed_image_keeps_no_label_of_the_one_before(
    depth_anything, marigold_normals, pixels, image_folder, tmp_path
):
    """Neither one that another run makes, nor one that can't be made of it: the next run with that labeller makes it."""
    depth, normal, out = _load(depth=depth_anything), _load(normal=marigold_normals), tmp_path / "out"
    _label(image_folder, out, depth)
    Image.fromarray(pixels(77, 44, 30)).save(image_folder / "n01/d.png")
    _label(image_folder, out, normal)
    entries = {
        entry.id: {name for name, path in entry.files.items() if path}
        for entry in read_manifest(read_dataset_info(out), "train")
    }
    assert entries.pop("n01/d") == {"rgb", "normal"}
    assert all(files == {"rgb", "depth", "normal"} for files in entries.values())
    _label(image_folder, out, depth)
    _label(image_folder, tmp_path / "fresh", depth)
    assert _files(tmp_path / "fresh/train/depth") == _files(out / "train/depth")


def test_a_folder_of_an_older_version_has_no_records(depth_anything, image_folder, tmp_path):
    """What is newer than its image is taken to be made from it."""
    labellers, out = _load(depth=depth_anything), tmp_path / "out"
    _label(image_folder, out, labellers)
    (out / "train/sources.jsonl").unlink()
    before = _stamps(out)
    later = time.time() + 60
    os.utime(image_folder / "n01/c.png", (later, later))
    _label(image_folder, out, labellers)
    changed = {name for name, stamp in _stamps(out).items() if before[name] != stamp}
    assert changed == {"train/rgb/n01/c.png", "train/depth/n01/c.png"}
    assert len((out / "train/sources.jsonl").read_text().splitlines()) == 5


def test_names_that_clash_or_are_no_utf8(depth_anything, pixels, tmp_path):
    images = tmp_path / os.fsdecode(b"im\xe1genes")
    long = "x" * 251
    names = [b"a.png", b"a.jpg", b"a.png.png", b"caf\xe9.png", "e\u0301.png".encode(), "\u00e9.png".encode()]
    names += [f"{long}.png".encode(), b"d.jpg", b"d.png/e.png", b"caf\xe9/f.png", b"caf%E9/f.png"]
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(images) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 30, 30)).save(path)
    report = _label(images, tmp_path / "out", _load(depth=depth_anything))
    assert (report.num_samples, report.bad) == (len(names), ())
    assert check_dataset(tmp_path / "out").problems == ()
    info = read_dataset_info(tmp_path / "out")
    assert set(info.categories) == {"d.png", "caf%E9", "caf%E9_2"}
    found = [np.asarray(Image.open(sample.files["rgb"])).tobytes() for sample in read_manifest(info, "train")]
    assert len(set(found)) == len(names)
    assert _label(images, tmp_path / "out", _load(depth=depth_anything)).num_samples == len(names)


def test_a_second_labelling_into_the_folder_is_refused(depth_anything, image_folder, tmp_path):
    labellers = _load(depth=depth_anything)
    _label(image_folder, tmp_path / "out", labellers)
    before = _files(tmp_path / "out")
    with FolderLock(tmp_path / "out", "mmdit data label"), pytest.raises(UserError, match="is writing here"):
        _label(image_folder, tmp_path / "out", labellers, split="val")
    assert _files(tmp_path / "out") == before


def test_wrong_input_is_named(depth_anything, image_folder, tmp_path):
    labellers = _load(depth=depth_anything)
    with pytest.raises(UserError, match="no such folder"):
        _label(tmp_path / "nowhere", tmp_path / "out", labellers)
    with pytest.raises(UserError, match="accelerator 'tpu'"):
        label_images(image_folder, tmp_path / "out", labellers, accelerator="tpu")
    with pytest.raises(UserError, match="split 'a/b'"):
        _label(image_folder, tmp_path / "out", labellers, split="a/b")
    assert not (tmp_path / "out").exists()
