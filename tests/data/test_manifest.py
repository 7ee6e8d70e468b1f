import json

import pytest

from mmdit.data.manifest import NO_CATEGORY, list_splits, modalities_from_dataset, read_dataset_info, read_manifest
from mmdit.errors import UserError


def test_info_and_samples_are_read(make_dataset):
    root = make_dataset(num_samples=3)
    make_dataset(num_samples=2, split="val")
    info = read_dataset_info(root)
    assert info.modalities == ("rgb", "depth", "normal", "segmentation")
    assert info.categories == ("torus", "cone")
    assert info.depth_scale == 0.001
    assert list_splits(root) == ["train", "val"]
    samples = read_manifest(info, "train")
    assert [(s.id, s.category) for s in samples] == [("000", 0), ("001", 1), ("002", 0)]
    assert samples[1].files["depth"] == root / "train" / "depth" / "001.png"


def test_absent_keys_are_missing_modalities_and_no_category_is_minus_one(make_dataset):
    def edit(rows):
        del rows[0]["normal"]
        rows[1]["rgb"] = None
        del rows[1]["category"]

    samples = read_manifest(read_dataset_info(make_dataset(edit_rows=edit)), "train")
    assert samples[0].files["normal"] is None
    assert samples[0].files["rgb"] is not None
    assert samples[1].files["rgb"] is None
    assert samples[1].category == NO_CATEGORY == -1


def test_modalities_take_classes_from_the_dataset_and_settings_from_the_caller(make_dataset):
    info = read_dataset_info(make_dataset())
    modalities = modalities_from_dataset(info, settings={"depth": {"space": "depth", "quantiles": [0, 1]}})
    assert list(modalities) == list(info.modalities)
    assert [c["id"] for c in modalities["segmentation"].settings["classes"]] == [0, 1, 5]
    assert dict(modalities["depth"].settings) == {"space": "depth", "quantiles": [0, 1]}
    assert list(modalities_from_dataset(info, ["depth", "rgb"])) == ["depth", "rgb"]
    for names, message in (([], "modalities is an empty list"), (["rgb", "rgb"], "modalities names 'rgb' twice")):
        with pytest.raises(UserError, match=message):
            modalities_from_dataset(info, names)
    with pytest.raises(UserError, match=r"'dept'.*'depth'"):
        modalities_from_dataset(info, ["dept"])
    with pytest.raises(UserError, match="in settings 'flow'"):
        modalities_from_dataset(info, settings={"flow": {}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": []}, r"'modalities' is \[\]: must be a list"),
        ({"modalities": ["rgb", "flow"]}, "'flow'"),
        ({"categories": ["a", "a"]}, "twice"),
        ({"categories": 3}, "'categories' is 3: give a list of names"),
        ({"segmentation_classes": [1]}, "'segmentation_classes' must be a list"),
        ({"depth_scale": 0}, "'depth_scale' is 0"),
        ({"depth_scale": "mm"}, "'depth_scale' is 'mm'"),
    ],
)
def test_wrong_dataset_json_is_named(make_dataset, changes, message):
    with pytest.raises(UserError, match=rf"dataset\.json: .*{message}"):
        read_dataset_info(make_dataset(**changes))


def test_manifest_that_is_no_text_is_named(make_dataset):
    info = read_dataset_info(make_dataset())
    (info.root / "train" / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1: not UTF-8 text"):
        read_manifest(info, "train")


def test_missing_and_damaged_dataset_json(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.json: no such file"):
        read_dataset_info(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: not readable as JSON"):
        read_dataset_info(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "'id'"),
        (json.dumps({"rgb": "a.png"}), "'id'"),
        (json.dumps({"id": "000"}), "twice"),
        (json.dumps({"id": "x", "category": "tours"}), "'tours': did you mean 'torus'"),
        (json.dumps({"id": "x", "rgb": 3}), "rgb is 3: a path is a string"),
    ],
)
def test_wrong_lines_are_numbered(make_dataset, line, message):
    root = make_dataset(num_samples=2)
    with (root / "train" / "manifest.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=rf"manifest\.jsonl, line 3: .*{message}"):
        read_manifest(read_dataset_info(root), "train")


def test_unknown_split_lists_those_that_exist(make_dataset):
    info = read_dataset_info(make_dataset())
    with pytest.raises(UserError, match=r"splits in .*: train"):
        read_manifest(info, "trian")
