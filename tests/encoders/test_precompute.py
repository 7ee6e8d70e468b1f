import copy
import json
import os
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmdit.data.folder import AlignedFolder, stack_modalities
from mmdit.data.latents import LatentShards, read_latents_info
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.writer import DatasetWriter
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.precompute import Processes, encode_dataset, encoder_fingerprint, fingerprint
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.encoders.shard_writing import ShardWriter
from mmdit.errors import UserError
from mmdit.storage.lock import FolderLock


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=48, out_channels=48, block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False
    ).eval()


@pytest.fixture
def teacher() -> SceneTeacher:
    torch.manual_seed(0)
    return SceneTeacher(2, 3, image_size=16, hidden_size=8, depth=1, num_heads=2).eval().requires_grad_(False)


def _modalities(root):
    return modalities_from_dataset(read_dataset_info(root), settings={"depth": {"space": "depth", "quantiles": [0, 1]}})


def _encode(root, output, vae, **kwargs):
    settings = {"batch_size": 2, "shard_size": 2, "say": lambda text: None} | kwargs
    return encode_dataset(root, output, vae, _modalities(root), **settings)


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_moments_on_disk_are_those_of_the_images_and_their_mirrors(make_dataset, vae, tmp_path):
    root = make_dataset()
    info = _encode(root, tmp_path / "out", vae)
    assert info.moments_shape == (8, 4, 4)
    assert info.categories == ("torus", "cone")
    assert len(list((tmp_path / "out/train").glob("shard-*"))) == 3
    data = LatentShards(tmp_path / "out")
    folder = AlignedFolder(root, modalities=_modalities(root), mirrored=True)
    codec = LatentCodec(vae, _modalities(root))
    assert len(data) == len(folder) == 10
    for index in range(10):
        item = folder[index]
        images = stack_modalities(torch.utils.data.default_collate([item]), folder.modalities)
        with torch.no_grad():
            expected = codec.encode_all(images)[0]
        torch.testing.assert_close(data[index]["moments"].float(), expected, atol=2e-3, rtol=2e-3)
        assert (data[index]["id"], data[index]["category"]) == (item["id"], item["category"])


def test_statistics_whiten_the_training_split_and_stay_when_a_split_is_added(make_dataset, vae, tmp_path):
    root = make_dataset(num_samples=6)
    info = _encode(root, tmp_path / "out", vae)
    data = LatentShards(tmp_path / "out")
    moments = torch.stack([data[i]["moments"] for i in range(len(data))])
    codec, generator = LatentCodec(vae, info.modalities), torch.Generator().manual_seed(0)
    drawn = torch.cat([codec.latents_all(moments, generator) for _ in range(20)])  # (20 n, M, C, h, w)
    assert drawn.mean(dim=(0, 3, 4)).abs().max() < 0.05
    assert (drawn.std(dim=(0, 3, 4)) - 1).abs().max() < 0.05
    make_dataset(num_samples=3, split="val")
    assert _encode(root, tmp_path / "out", vae).modalities == info.modalities
    assert len(LatentShards(tmp_path / "out", "val")) == 6


def test_a_missing_modality_is_zeros_and_left_out_of_the_statistics(make_dataset, vae, tmp_path):
    def without_depth(rows):
        del rows[1]["depth"]

    root = make_dataset(num_samples=3, edit_rows=without_depth)
    info = _encode(root, tmp_path / "out", vae)
    data = LatentShards(tmp_path / "out")
    assert data[1]["present"].tolist() == [True, False, True, True]
    assert not data[1]["moments"][1].any()
    kept = torch.stack([data[i]["moments"][1] for i in (0, 2, 3, 5)]).double()
    mean, logvar = kept.chunk(2, dim=1)
    torch.testing.assert_close(torch.tensor(info.modalities["depth"].latents_mean).double(), mean.mean(dim=(0, 2, 3)))
    variance = mean.var(dim=(0, 2, 3), correction=0) + logvar.exp().mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(info.modalities["depth"].latents_std).double(), variance.sqrt())


def test_a_modality_that_no_sample_has_is_refused(make_dataset, vae, tmp_path):
    def without_depth(rows):
        for row in rows:
            del row["depth"]

    with pytest.raises(UserError, match="no sample with depth"):
        _encode(make_dataset(edit_rows=without_depth), tmp_path / "out", vae)


class _Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_and_writes_the_same_files(make_dataset, vae, tmp_path, monkeypatch):
    root = make_dataset()
    _encode(root, tmp_path / "whole", vae)
    write, written = ShardWriter.write, []

    def write_and_die(writer, job, *args):
        if len(written) == 2:
            # What SIGKILL leaves: a temporary file of a shard that was not finished.
            (job.path.parent / f".{job.path.name}.tmp").write_bytes(b"half")
            raise _Killed
        written.append(job.path.name)
        return write(writer, job, *args)

    monkeypatch.setattr(ShardWriter, "write", write_and_die)
    with pytest.raises(_Killed):
        _encode(root, tmp_path / "out", vae)
    with pytest.raises(UserError, match=r"latents\.json"):
        LatentShards(tmp_path / "out")
    resumed = []
    monkeypatch.setattr(
        ShardWriter, "write", lambda writer, job, *args: resumed.append(job.path.name) or write(writer, job, *args)
    )
    _encode(root, tmp_path / "out", vae)
    assert resumed == ["shard-00002.safetensors"]
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncate", "remove", "other"])
def test_a_bad_shard_alone_is_written_again(make_dataset, vae, tmp_path, damage):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    before = _files(tmp_path / "out")
    path = tmp_path / "out/train/shard-00001.safetensors"
    other = tmp_path / "out/train/shard-00000.safetensors"
    stamp = other.stat().st_mtime_ns
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "remove":
        path.unlink()
    else:
        shutil.copy(other, path)  # the right shapes, the wrong samples
    _encode(root, tmp_path / "out", vae)
    assert _files(tmp_path / "out") == before
    assert other.stat().st_mtime_ns == stamp


def test_new_samples_of_a_split_are_added(make_dataset, vae, tmp_path):
    root = make_dataset(num_samples=3)
    _encode(root, tmp_path / "out", vae)
    make_dataset(num_samples=6)
    _encode(root, tmp_path / "out", vae)
    assert LatentShards(tmp_path / "out").ids == [f"{i:03d}" for i in range(6)]


def test_two_processes_write_what_one_writes(make_dataset, vae, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "one", vae)

    barrier = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        ranks = [
            pool.submit(_encode, root, tmp_path / "two", vae, processes=Processes(rank, 2, barrier.wait))
            for rank in (0, 1)
        ]
        assert ranks[0].result() == ranks[1].result()
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_features_of_both_views_are_stored_and_can_be_added_later(make_dataset, vae, teacher, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    shards = {name: data for name, data in _files(tmp_path / "out").items() if "shard" in name}
    info = _encode(root, tmp_path / "out", vae, teacher=teacher)
    assert info.features["shape"] == [4, 8]
    assert shards.items() <= _files(tmp_path / "out").items()
    data = LatentShards(tmp_path / "out", features=True)
    folder = AlignedFolder(root, modalities=_modalities(root), mirrored=True)
    for index in (0, 4, 5, 9):
        expected = teacher.features(folder[index]["rgb"][None])[0]
        torch.testing.assert_close(data[index]["features"].float(), expected, atol=2e-3, rtol=2e-3)
    assert _encode(root, tmp_path / "out", vae).features == info.features


def test_features_of_changed_samples_need_their_teacher_again(make_dataset, vae, teacher, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    before = _files(tmp_path / "out")
    _change_pixels(root / "train/rgb/004.png")
    with pytest.raises(UserError, match=r"features of scene_teacher, and 1 files .*give --teacher again"):
        _encode(root, tmp_path / "out", vae)
    assert _files(tmp_path / "out") == before
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    assert len(LatentShards(tmp_path / "out", features=True)) == 10


@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_of_another_size_are_named(make_dataset, vae, tmp_path, num_workers, capsys):
    root = make_dataset()
    for name in ("rgb", "depth", "normal", "segmentation"):
        path = root / "train" / name / "001.png"
        Image.open(path).resize((8, 16), Image.Resampling.NEAREST).save(path)
    message = (
        r"^sample '001' \(.*rgb/001.png\) has 16 x 8 pixels \(height x width\), '000' has 16 x 16: give --size, such as 16x16 "
        r"\(--skip_bad leaves such samples out\)$"
    )
    with pytest.raises(UserError, match=message):  # with a worker too, whose traceback torch puts into the message
        _encode(root, tmp_path / "out", vae, num_workers=num_workers)
    assert capsys.readouterr().err.endswith("\n")  # the progress bar leaves the error a line of its own
    assert not (tmp_path / "out" / "latents.json").exists()


def test_images_that_the_vae_cannot_take_are_named(make_dataset, vae, tmp_path):
    message = (
        r"rgb/000.png: 18 x 18 pixels \(height x width\): both must be multiples of 4, .* give --size, such as 16x16$"
    )
    with pytest.raises(UserError, match=message):
        _encode(make_dataset(num_samples=1, size=18), tmp_path / "out", vae)


def test_output_that_is_a_file_is_refused_before_the_work(make_dataset, vae, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: is a file"):
        _encode(make_dataset(), tmp_path / "out", vae)
    assert (tmp_path / "out").read_text() == "a file"


def test_the_dataset_itself_is_no_output(make_dataset, vae):
    root = make_dataset()
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"is the dataset itself; latents need another folder, such as .*_latents"):
        _encode(root, root / "train" / "..", vae)
    assert kept == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["../dataset/train"], "must be the name of a folder"),
        (["train", "train"], "--splits names 'train' twice"),
        ([], "--splits is an empty list"),
    ],
)
def test_splits_are_folders_of_the_dataset_each_once(make_dataset, vae, tmp_path, splits, message):
    root = make_dataset()
    before = _files(root)
    with pytest.raises(UserError, match=message):
        _encode(root, tmp_path / "out", vae, splits=splits)
    assert not (tmp_path / "out").exists()
    assert _files(root) == before


def test_folders_of_others_are_no_output(make_dataset, vae, tmp_path):
    root = make_dataset()
    other = Path(shutil.copytree(root, tmp_path / "other"))
    with pytest.raises(UserError, match=r"other: is a dataset, .*choose another --output"):
        _encode(root, other, vae)
    _encode(root, tmp_path / "out", vae)
    with pytest.raises(UserError, match=r"out: is the latents of a dataset, .*choose another --output"):
        DatasetWriter(tmp_path / "out", "train")


def test_an_output_is_of_one_dataset(make_dataset, vae, tmp_path):
    """Which may be moved and extended."""
    facts = {"generator": "mmdit data label", "images": {"train": {"folder": "a", "licence": "unknown"}}}
    root = make_dataset(provenance=facts)
    _encode(root, tmp_path / "out", vae)
    make_dataset(num_samples=6, provenance={**facts, "images": {"train": {"folder": "b", "licence": "CC0"}}})
    before = _files(tmp_path / "out")
    with pytest.raises(UserError, match=r"the dataset's images\.train\.folder was 'a', now 'b'"):
        _encode(root, tmp_path / "out", vae)
    assert _files(tmp_path / "out") == before
    images = {"train": {"folder": "a", "licence": "CC0"}, "val": {"folder": "c", "licence": "CC0"}}
    make_dataset(num_samples=6, provenance={**facts, "images": images, "labels": {"depth": {}}})
    _encode(root.rename(tmp_path / "moved"), tmp_path / "out", vae)
    assert len(LatentShards(tmp_path / "out")) == 12
    make_dataset(provenance=None)
    with pytest.raises(UserError, match="the dataset's generator was 'mmdit data label', now None"):
        _encode(root, tmp_path / "out", vae)


def test_a_dataset_without_provenance_goes_by_its_name(make_dataset, vae, tmp_path):
    root = make_dataset(provenance=None)
    _encode(root, tmp_path / "out", vae)
    _encode(root, tmp_path / "out", vae)
    with pytest.raises(UserError, match="the dataset's name was 'dataset', now 'another'"):
        _encode(shutil.copytree(root, tmp_path / "another"), tmp_path / "out", vae)


def test_another_vae_or_codec_is_refused(make_dataset, vae, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    other = AutoencoderKL(**{k: v for k, v in vae.config.items() if not k.startswith("_")})
    with pytest.raises(UserError, match=r"holds latents of another request \(VAE was"):
        _encode(root, tmp_path / "out", other)
    with pytest.raises(UserError, match=r"codec settings of depth .*'space'"):
        encode_dataset(root, tmp_path / "out", vae, modalities_from_dataset(read_dataset_info(root)))
    with pytest.raises(UserError, match="moments of shape"):
        _encode(root, tmp_path / "out", vae, size=8)


def test_disk_is_estimated_before_and_refused_when_short(make_dataset, vae, tmp_path, monkeypatch):
    root, said = make_dataset(), []
    _encode(root, tmp_path / "out", vae, say=said.append)
    assert said[0].startswith(f"{tmp_path / 'out'}: 5 samples to encode, 3 files")
    written = sum(p.stat().st_size for p in (tmp_path / "out/train").glob("shard-*"))
    estimate = float(said[0].split(" files, ")[1].split(" MiB")[0]) * 2**20
    assert abs(estimate - written) < 0.15 * 2**20
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(UserError, match=r"needs .* MiB and 64 to spare, and 1.0 are free"):
        _encode(root, tmp_path / "full", vae)
    assert not (tmp_path / "full").exists()


def test_a_bad_sample_is_named(make_dataset, vae, tmp_path):
    root = make_dataset()
    (root / "train/rgb/004.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"sample '004'.*004\.png: the file is empty"):
        _encode(root, tmp_path / "out", vae)


def test_an_empty_folder_is_named(vae, tmp_path):
    with pytest.raises(UserError, match=r"manifest\.jsonl"):
        encode_dataset(tmp_path, tmp_path / "out", vae, {})


def test_shards_record_their_origin(make_dataset, vae, tmp_path):
    root = make_dataset()
    info = _encode(root, tmp_path / "out", vae)
    values = json.loads((tmp_path / "out/latents.json").read_text())
    assert values["vae"]["config"]["in_channels"] == 48
    assert values["source"] == {"licence": "CC0", "provenance": "random numbers", "name": "dataset", "size": None}
    assert read_latents_info(tmp_path / "out") == info
    with safe_open(tmp_path / "out/train/shard-00000.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"content"}
        assert file.get_slice("depth").get_dtype() == "F16"


def _change_pixels(path):
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def _stamps(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("train/*.safetensors")}


def _shard_of(row):
    return f"train/shard-{row // 2:05d}.safetensors"


def test_corrected_samples_are_encoded_again_and_no_others(make_dataset, vae, teacher, tmp_path):
    """A category, a file that was missing and pixels: the shards of those samples, and features only where RGB changed."""

    def with_faults(rows):
        rows[0]["category"] = "cone"
        del rows[2]["depth"]

    root = make_dataset(num_samples=8, edit_rows=with_faults)
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    before, ids = _stamps(tmp_path / "out"), LatentShards(tmp_path / "out").ids
    manifest = root / "train/manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["category"], rows[2]["depth"] = "torus", "depth/002.png"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _change_pixels(root / "train/rgb/004.png")
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    after = _stamps(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {_shard_of(0), _shard_of(2), _shard_of(4), "train/features-00002.safetensors"}
    data = LatentShards(tmp_path / "out", features=True)
    assert data.ids == ids
    assert data[0]["category"] == 0
    assert data[2]["present"].all()
    _encode(root, tmp_path / "fresh", vae, teacher=teacher)
    for name in (*after, "train/index.json", "latents.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    assert _stamps(tmp_path / "out") == after


def test_a_change_of_depth_scale_is_one_of_the_depth(make_dataset, vae, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    before = _stamps(tmp_path / "out")
    make_dataset(depth_scale=0.01)
    _encode(root, tmp_path / "out", vae)
    assert all(stamp != before[name] for name, stamp in _stamps(tmp_path / "out").items() if "shard" in name)


@pytest.mark.parametrize("records", ["kept", "lost", "damaged"])
def test_a_copy_with_other_times_is_the_same_data(make_dataset, vae, tmp_path, records):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    before = _stamps(tmp_path / "out")
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    for path in (tmp_path / "out/train").glob("sources-*.json"):
        path.unlink() if records == "lost" else records == "damaged" and path.write_text('{"files": {"000": 1}}')
    said = []
    _encode(root, tmp_path / "out", vae, say=said.append)
    assert _stamps(tmp_path / "out") == before
    assert "0 samples to encode" in said[0]


def _forget_content(latents):
    """Leave of the index and of latents.json what earlier versions wrote."""
    for path in latents.glob("*/index.json"):
        shards = [{"ids": shard["ids"]} for shard in json.loads(path.read_text())["shards"]]
        path.write_text(json.dumps({"shards": shards}))
    values = json.loads((latents / "latents.json").read_text())
    del values["statistics"]
    (latents / "latents.json").write_text(json.dumps(values))


@pytest.mark.parametrize("earlier", [False, True])
def test_statistics_are_those_of_the_samples_as_they_are_now(make_dataset, vae, tmp_path, earlier):
    """A pilot of two samples with black pictures; then they are mended, others added, and at last a second split."""
    root = make_dataset(num_samples=2)
    pictures = {path: path.read_bytes() for path in (root / "train/rgb").iterdir()}
    for path in pictures:
        Image.new("RGB", (16, 16)).save(path)
    pilot = _encode(root, tmp_path / "out", vae)
    if earlier:
        _forget_content(tmp_path / "out")
    for path, content in pictures.items():
        path.write_bytes(content)
    said = []
    mended = _encode(root, tmp_path / "out", vae, say=said.append)
    assert mended == _encode(root, tmp_path / "mended", vae)
    assert mended.modalities["rgb"] != pilot.modalities["rgb"]
    assert sum("models trained before have the old one" in line for line in said) == 1
    make_dataset(num_samples=5)
    whole = _encode(root, tmp_path / "out", vae)
    assert whole == _encode(root, tmp_path / "whole", vae)
    if earlier:
        _forget_content(tmp_path / "out")
    make_dataset(num_samples=3, split="val")
    said.clear()
    assert _encode(root, tmp_path / "out", vae, splits=["val"], say=said.append).modalities == whole.modalities
    assert _encode(root, tmp_path / "out", vae, say=said.append).modalities == whole.modalities
    assert not any("whitening" in line for line in said)


def test_files_of_another_run_are_refused(make_dataset, vae, teacher, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae, teacher=teacher)
    for name in os.listdir(root / "train/rgb"):
        _change_pixels(root / "train/rgb" / name)
    _encode(root, tmp_path / "other", vae, teacher=teacher)
    for name in ("train/shard-00001.safetensors", "train/features-00000.safetensors", "latents.json"):
        whole = (tmp_path / "out" / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, tmp_path / "out" / name)
        with pytest.raises(UserError, match=f"{name}: .*run 'mmdit data encode' again"):
            LatentShards(tmp_path / "out", features=True)
        (tmp_path / "out" / name).write_bytes(whole)
    assert len(LatentShards(tmp_path / "out", features=True)) == 10


def test_shards_of_an_older_version_are_read_and_written_again(make_dataset, vae, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    whole = _files(tmp_path / "out")
    for path in (tmp_path / "out/train").glob("shard-*"):
        save_file(load_file(path), path, metadata={"content": "0123456789abcdef"})
    for path in (tmp_path / "out/train").glob("sources-*.json"):
        path.unlink()
    _forget_content(tmp_path / "out")
    assert len(LatentShards(tmp_path / "out")) == 10
    said = []
    _encode(root, tmp_path / "out", vae, say=said.append)
    assert any("3 files of an older version don't say what they were made from" in line for line in said)
    assert _files(tmp_path / "out") == whole


def _spoil(root):
    """Three bad samples of six; returns their ids."""
    (root / "train/rgb/000.png").write_bytes(b"")
    (root / "train/depth/003.png").unlink()
    for name in ("rgb", "depth", "normal", "segmentation"):
        path = root / "train" / name / "005.png"
        Image.open(path).resize((8, 16), Image.Resampling.NEAREST).save(path)
    return ["000", "003", "005"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_bad_samples_are_named_before_it_stops(make_dataset, vae, tmp_path, num_workers):
    root = make_dataset(num_samples=6)
    bad, said = _spoil(root), []
    with pytest.raises(UserError, match=r"3 bad samples, listed above, first .*'000'.*--skip_bad"):
        _encode(root, tmp_path / "out", vae, num_workers=num_workers, say=said.append)
    listed = [line for line in said if line.startswith("train: sample ")]
    assert [line.split("'")[1] for line in listed] == bad
    assert not (tmp_path / "out/train/index.json").exists()
    shutil.copytree(make_dataset(num_samples=6), tmp_path / "mended", dirs_exist_ok=True)
    before = _stamps(tmp_path / "out")
    _encode(tmp_path / "mended", tmp_path / "out", vae)
    assert LatentShards(tmp_path / "out").ids == [f"{i:03d}" for i in range(6)]
    assert all(_stamps(tmp_path / "out")[name] == stamp for name, stamp in before.items())


def test_skip_bad_leaves_them_out_until_they_are_mended(make_dataset, vae, teacher, tmp_path):
    root = make_dataset(num_samples=6)
    _spoil(root)
    said = []
    _encode(root, tmp_path / "out", vae, teacher=teacher, skip_bad=True, shard_size=1, say=said.append)
    assert sum(line.startswith("train: sample ") for line in said) == 3
    assert said[-1].endswith("3 bad samples are left out")
    data = LatentShards(tmp_path / "out", features=True)
    assert data.ids == ["001", "002", "004"]
    assert [data[i]["id"] for i in range(6)] == ["001", "002", "004"] * 2
    before = _stamps(tmp_path / "out")
    _encode(root, tmp_path / "out", vae, teacher=teacher, skip_bad=True, shard_size=1)
    assert _stamps(tmp_path / "out") == before
    with pytest.raises(UserError, match="3 bad samples"):
        _encode(root, tmp_path / "out", vae, teacher=teacher, shard_size=1)
    make_dataset(num_samples=6)
    _encode(root, tmp_path / "out", vae, teacher=teacher, skip_bad=True, shard_size=1)
    assert LatentShards(tmp_path / "out", features=True).ids == [f"{i:03d}" for i in range(6)]


def test_two_processes_leave_out_the_same(make_dataset, vae, teacher, tmp_path):
    root = make_dataset(num_samples=6)
    _spoil(root)
    settings = {"teacher": teacher, "skip_bad": True}
    _encode(root, tmp_path / "one", vae, **settings)
    barrier = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        ranks = [
            pool.submit(_encode, root, tmp_path / "two", vae, processes=Processes(rank, 2, barrier.wait), **settings)
            for rank in (0, 1)
        ]
        assert ranks[0].result() == ranks[1].result()
    assert _files(tmp_path / "two") == _files(tmp_path / "one")


def test_a_second_encoding_into_the_folder_is_refused(make_dataset, vae, tmp_path):
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    before = _files(tmp_path / "out")
    with (
        FolderLock(tmp_path / "out", "mmdit data encode"),
        pytest.raises(UserError, match=r"'mmdit data encode' \(process \d+ on .*\) is writing here"),
    ):
        _encode(make_dataset(num_samples=7), tmp_path / "out", vae)
    assert _files(tmp_path / "out") == before


def test_files_outside_need_a_word(make_dataset, vae, tmp_path):
    def outside(rows):
        rows[0]["rgb"] = "../../elsewhere.png"

    root = make_dataset(edit_rows=outside)
    shutil.copy(root / "train/rgb/001.png", tmp_path / "elsewhere.png")
    with pytest.raises(UserError, match="leads out of the dataset"):
        _encode(root, tmp_path / "out", vae)
    _encode(root, tmp_path / "out", vae, allow_outside=True)
    assert len(LatentShards(tmp_path / "out")) == 10


@pytest.mark.parametrize(
    ("part", "same"), [("decoder.", True), ("post_quant_conv.", True), ("encoder.", False), ("quant_conv.", False)]
)
def test_latents_are_told_by_what_encodes_them(part: str, same: bool) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    before, whole = encoder_fingerprint(vae), fingerprint(vae)
    with torch.no_grad():
        next(value for name, value in vae.named_parameters() if name.startswith(part)).add_(1.0)
    assert (encoder_fingerprint(vae) == before) is same
    assert fingerprint(vae) != whole


def test_a_vae_with_another_decoder_extends_the_latents(make_dataset, vae, tmp_path):
    """They are the same latents: nothing is written again, and the folder keeps its own VAE."""
    root = make_dataset()
    _encode(root, tmp_path / "out", vae)
    before = _files(tmp_path / "out")
    stamps = [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*.safetensors")) if "vae" not in path.parts
    ]
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.decoder.conv_in.weight.mul_(2)
    _encode(root, tmp_path / "out", other)
    assert {k: v for k, v in _files(tmp_path / "out").items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k
    }
    assert stamps == [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*.safetensors")) if "vae" not in path.parts
    ]
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(2)
    with pytest.raises(UserError, match="of another request"):
        _encode(root, tmp_path / "out", other)
