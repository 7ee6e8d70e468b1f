import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mmdit.data import shards
from mmdit.data.datamodule import make_loader
from mmdit.data.latents import (
    LatentShards,
    LatentsInfo,
    features_name,
    read_latents_info,
    shard_name,
    whitening_statistics,
)
from mmdit.encoders.shard_jobs import shard_jobs
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES

COUNTS = (3, 2)
SHAPE = (8, 4, 6)


@pytest.fixture
def encoded(tmp_path):
    """Two shards of random moments for rgb and depth, with features; returns (root, tensors of all samples)."""
    generator = torch.Generator().manual_seed(0)
    modalities = {
        name: MODALITIES[name].replace(latents_mean=[0.0] * 4, latents_std=[1.0] * 4) for name in ("rgb", "depth")
    }
    info = LatentsInfo(modalities, ("a", "b"), 2, SHAPE, {"fingerprint": "f"}, {"teacher": "t", "shape": [6, 5]})
    (tmp_path / "train").mkdir()
    (tmp_path / "latents.json").write_text(json.dumps(info.to_dict()))
    parts, ids = [], []
    for number, count in enumerate(COUNTS):
        part = {name: torch.randn(count, 2, *SHAPE, generator=generator).half() for name in modalities}
        part["present"] = torch.rand(count, 2, generator=generator) < 0.5
        part["category"] = torch.randint(-1, 2, (count,), generator=generator)
        save_file(part, tmp_path / "train" / shard_name(number))
        features = {"features": torch.randn(count, 2, 6, 5, generator=generator).half()}
        save_file(features, tmp_path / "train" / features_name(number))
        parts.append(part | features)
        ids.append([f"{number}-{i}" for i in range(count)])
    (tmp_path / "train" / "index.json").write_text(json.dumps({"shards": [{"ids": shard_ids} for shard_ids in ids]}))
    return tmp_path, {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def test_info_survives_json(encoded):
    info = read_latents_info(encoded[0])
    assert LatentsInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert info.modalities["depth"].settings["space"] == "disparity"


def test_items_are_every_view_of_every_sample(encoded):
    root, tensors = encoded
    data = LatentShards(root, features=True)
    assert len(data) == 10
    for index in range(10):
        view, sample = divmod(index, 5)
        item = data[index]
        assert torch.equal(item["moments"], torch.stack([tensors["rgb"], tensors["depth"]], dim=1)[sample, :, view])
        assert item["moments"].dtype == item["features"].dtype == torch.float16
        assert torch.equal(item["features"], tensors["features"][sample, view])
        assert torch.equal(item["present"], tensors["present"][sample])
        assert item["category"] == tensors["category"][sample]
        assert item["id"] == ["0-0", "0-1", "0-2", "1-0", "1-1"][sample]
    with pytest.raises(IndexError):
        data[10]


def test_modalities_are_chosen_by_name_in_the_order_given(encoded):
    root, tensors = encoded
    data = LatentShards(root, modalities=["depth", "rgb"], mirrored=False)
    assert len(data) == 5
    assert list(data.modalities) == ["depth", "rgb"]
    assert torch.equal(data[4]["moments"][0], tensors["depth"][4, 0])
    assert torch.equal(data[4]["present"], tensors["present"][4].flip(0))
    assert "features" not in data[4]
    with pytest.raises(UserError, match="'dpeth'"):
        LatentShards(root, modalities=["dpeth"])


def test_workers_map_the_files_themselves(encoded):
    root, _ = encoded
    data = LatentShards(root)
    expected = [data[i]["moments"] for i in range(10)]
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(copy[i]["moments"], expected[i]) for i in range(10))
    loader = torch.utils.data.DataLoader(data, batch_size=5, num_workers=2, multiprocessing_context="fork")
    loaded = torch.cat([batch["moments"] for batch in loader])
    assert torch.equal(loaded, torch.stack(expected))


def test_lost_truncated_and_misshaped_shards_are_named(encoded):
    root, tensors = encoded
    path = root / "train" / shard_name(1)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.safetensors: the shard is missing"):
        LatentShards(root)
    for cut in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"shard-00001\.safetensors: truncated or damaged"):
            LatentShards(root)
    save_file({key: value[:1].clone() for key, value in tensors.items()}, path)
    with pytest.raises(UserError, match=r"shard-00001\.safetensors: 'rgb' has shape \[1, 2, 8, 4, 6\]"):
        LatentShards(root)
    save_file({"rgb": tensors["rgb"][3:].clone()}, path)
    with pytest.raises(UserError, match="'depth' has shape None"):
        LatentShards(root)


def _rewrite_header(path, edit):
    """Change the header of a safetensors file and leave its data as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.update(edit(header))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _entry(header, key, **changes):
    return {key: header[key] | changes}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: _entry(h, "depth", data_offsets=h["rgb"]["data_offsets"]), "overlaps another tensor"),
        (lambda h: _entry(h, "rgb", data_offsets=[0, 10]), "'rgb' of shape .* has 10 bytes"),
        (lambda h: _entry(h, "rgb", data_offsets=[10, 0]), "has -10 bytes"),
        (lambda h: _entry(h, "rgb", data_offsets=[-1, 5]), "no dtype, shape and data_offsets"),
        (lambda h: _entry(h, "rgb", data_offsets=[0.0, True]), "no dtype, shape and data_offsets"),
        (lambda h: _entry(h, "rgb", shape=[10**30, 1]), "'rgb' of shape"),
        (lambda h: _entry(h, "rgb", shape="abc"), "no dtype, shape and data_offsets"),
        (lambda h: _entry(h, "rgb", shape=[h["rgb"]["shape"][0] // 2]), "'rgb' of shape"),
        (lambda h: _entry(h, "rgb", dtype=["F16"]), "no dtype, shape and data_offsets"),
        (lambda h: {"rgb": None}, "the entry of 'rgb' is not an object"),
        (lambda h: {"more": h["rgb"]}, "overlaps another tensor"),
    ],
)
def test_a_header_that_lies_is_refused(encoded, edit, message):
    root, _ = encoded
    _rewrite_header(root / "train" / shard_name(1), edit)
    with pytest.raises(UserError, match=rf"shard-00001\.safetensors: truncated or damaged shard \(.*{message}"):
        LatentShards(root)


@pytest.mark.parametrize("category", [-7, 2, 2**40])
def test_a_category_that_does_not_exist_is_refused(encoded, category):
    root, tensors = encoded
    part = {key: value[3:].clone() for key, value in tensors.items() if key != "features"}
    part["category"][1] = category
    save_file(part, root / "train" / shard_name(1))
    message = rf"shard-00001\.safetensors: sample '1-1' has the category {category}, and there are 2"
    with pytest.raises(UserError, match=message):
        LatentShards(root)


def test_damaged_indices_and_pipes_are_refused(encoded):
    root, _ = encoded
    for content in (
        '{"shards": []}',
        '{"shards": [1]}',
        '{"shards": [{"ids": "ab"}]}',
        '{"shards": [{"ids": [1]}]}',
        "[]",
    ):
        (root / "train/index.json").write_text(content)
        with pytest.raises(UserError, match=r"index\.json: damaged"):
            LatentShards(root)
    (root / "train" / shard_name(1)).unlink()
    os.mkfifo(root / "train" / shard_name(1))
    (root / "train/index.json").write_text('{"shards": [{"ids": ["a", "b", "c"]}, {"ids": ["d", "e"]}]}')
    with pytest.raises(UserError, match="not a regular file"):
        LatentShards(root)


def test_a_shard_lost_while_training_is_named(encoded):
    root, _ = encoded
    data = LatentShards(root)
    (root / "train" / shard_name(1)).unlink()
    assert data[0]["id"] == "0-0"
    fresh = pickle.loads(pickle.dumps(data))
    with pytest.raises(UserError, match=r"shard-00001\.safetensors: the shard is missing"):
        fresh[4]


def test_a_shard_truncated_while_training_is_named(encoded):
    root, _ = encoded
    data = LatentShards(root)
    path = root / "train" / shard_name(1)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"shard-00001\.safetensors: the shard was truncated while it was in use"):
        [data[index] for index in range(10)]


def test_a_batch_is_its_items(encoded):
    data = LatentShards(encoded[0], modalities=["depth", "rgb"], features=True)
    indices = [7, 0, 4, 4]
    batch, items = data.read_batch(indices), [data[index] for index in indices]
    for key in ("moments", "features", "present"):
        assert torch.equal(batch[key], torch.stack([item[key] for item in items]))
    assert batch["category"].tolist() == [item["category"] for item in items]
    assert batch["id"] == [item["id"] for item in items]
    for num_workers in (0, 1):
        loaded = next(iter(make_loader(data, [*reversed(indices)], batch_size=4, num_workers=num_workers)))
        assert torch.equal(loaded["moments"], batch["moments"].flip(0))
        assert loaded["id"] == batch["id"][::-1]


def test_few_files_stay_open(encoded, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 1)
    data = LatentShards(encoded[0])
    expected = [data[index]["moments"] for index in (0, 4, 1)]
    assert all(torch.equal(data[index]["moments"], value) for index, value in zip((0, 4, 1), expected, strict=True))
    assert len(data._files._descriptors) == 1


def test_imagenet_with_four_modalities_fits_in_90_gb():
    """1,281,167 images at 256 pixels: 4 modalities x 8 x 32 x 32 in half precision, from the planned files' own sizes.

    Of every 64th image: shards are alike but for the last.
    """
    modalities = {name: MODALITIES[name] for name in ("rgb", "depth", "normal", "segmentation")}
    names = [f"n01440764/n01440764_{number:05d}" for number in range(1_281_167 // 64)]
    folder = _Sized([SimpleNamespace(id=name) for name in names])
    sizes = {}
    for views in (1, 2):
        info = LatentsInfo(modalities, ("a",), views, (8, 32, 32), {"fingerprint": "f"})
        sizes[views] = 64 * sum(job.num_bytes for job in shard_jobs(Path("out"), "train", folder, info, 1024))
    assert sizes[1] < 90e9
    assert sizes[1] == pytest.approx(84.0e9, rel=0.01)
    assert sizes[2] == pytest.approx(2 * sizes[1], rel=0.01)


class _Sized:
    """What ``shard_jobs`` needs of a dataset folder."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)


def test_features_must_be_there(encoded):
    root, _ = encoded
    (root / "train" / features_name(0)).unlink()
    LatentShards(root)
    with pytest.raises(UserError, match=r"features-00000\.safetensors"):
        LatentShards(root, features=True)
    values = json.loads((root / "latents.json").read_text())
    (root / "latents.json").write_text(json.dumps(values | {"features": None}))
    with pytest.raises(UserError, match="holds no features"):
        LatentShards(root, features=True)


def test_missing_and_damaged_descriptions(encoded, tmp_path):
    root, _ = encoded
    with pytest.raises(UserError, match=r"finished splits of .*: train"):
        LatentShards(root, "val")
    (root / "train" / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: damaged"):
        LatentShards(root)
    values = json.loads((root / "latents.json").read_text())
    changes = [{"categories": "ab"}, {"num_views": "2"}, {"num_views": 0}, {"moments_shape": [8, 4]}, {"vae": None}]
    changes += [
        {"moments_shape": [8, 4, 10**12, 1]},
        {"modalities": 3},
        {"features": {"shape": [6, True]}},
        {"source": 1},
    ]
    for content in ("{", "[]", '{"format": 1}', *(json.dumps(values | change) for change in changes)):
        (root / "latents.json").write_text(content)
        with pytest.raises(UserError, match=r"latents\.json: (damaged|not readable as JSON|format \[\])"):
            read_latents_info(root)
    (root / "latents.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        read_latents_info(root)
    with pytest.raises(UserError, match="encode the dataset first"):
        read_latents_info(root / "train")


def test_whitening_statistics_are_mean_and_standard_deviation():
    values = torch.randn(3, 1000, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [0.5]]) + 4
    mean, std = whitening_statistics(values.sum(dim=1), values.square().sum(dim=1), 1000)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean(dim=1))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), values.std(dim=1, correction=0))
