"""The rules of dataset.json and of the manifest: the loader and ``data check`` judge alike, whatever the bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.data.check import check_dataset
from mmdit.data.description import parse_description
from mmdit.data.manifest import list_splits, read_dataset_info, read_manifest
from mmdit.errors import UserError

CLASSES = [{"id": 0, "name": "floor", "color": [0, 0, 0]}, {"id": 255, "name": "ignore", "color": [255, 0, 0]}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One picture, listed twice."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train/a.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "train/ids.png")
    describe(tmp_path)
    manifest(tmp_path, {"id": "a", "category": "cone", "rgb": "a.png"}, {"id": "b", "rgb": "a.png"})
    return tmp_path


def describe(root: Path, **changes: object) -> None:
    values = {"modalities": ["rgb", "segmentation"], "categories": ["cone"], "segmentation_classes": CLASSES} | changes
    (root / "dataset.json").write_text(json.dumps(values))


def manifest(root: Path, *rows: object, text: bytes = b"") -> None:
    (root / "train/manifest.jsonl").write_bytes(text or b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def loads(root: Path) -> str:
    """The loader's error, "" for none."""
    try:
        read_manifest(read_dataset_info(root), "train")
    except UserError as error:
        return str(error)
    return ""


def reasons(root: Path) -> list[str]:
    """What check says, but for what it says of files."""
    found = check_dataset(root).problems
    return [str(problem) for problem in found if problem.file.endswith(("dataset.json", "manifest.jsonl"))]


def test_the_modalities_are_all_that_is_needed(root):
    for rest in ({}, {"categories": None}, {"categories": []}, {"licence": None, "depth_scale": None}):
        (root / "dataset.json").write_text(json.dumps({"modalities": ["rgb"]} | rest))
        manifest(root, {"id": "a", "category": None, "rgb": "a.png"})
        assert check_dataset(root).problems == ()
        info = read_dataset_info(root)
        assert (info.categories, info.depth_scale, info.segmentation_classes, info.licence) == ((), 0.001, None, "")
        assert [sample.category for sample in read_manifest(info, "train")] == [-1]


def test_255_is_a_label_like_any_other(root):
    manifest(root, {"id": "a", "segmentation": "ids.png"})
    assert check_dataset(root).problems == ()
    describe(root, segmentation_classes=CLASSES[:1])
    (problem,) = check_dataset(root).problems
    assert "unknown label" in problem.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ["rgb", "rgb"]}, "'modalities' names 'rgb' twice"),
        ({"modalities": "rgb"}, "'modalities' is 'rgb': must be a list"),
        ({"modalities": [["rgb"]]}, "unknown modality ['rgb']"),
        ({"modalities": {}}, "'modalities' is {}"),
        ({"categories": "cone"}, "'categories' is 'cone': give a list of names"),
        ({"categories": ["cone", None]}, "'categories' has the entry None"),
        ({"categories": ["cone", ""]}, "'categories' has the entry ''"),
        ({"categories": ["cone", 3]}, "'categories' has the entry 3"),
        ({"categories": [["cone"]]}, "'categories' has the entry ['cone']"),
        ({"categories": ["\ud800"]}, "'categories' has the entry '\\ud800'"),
        ({"categories": ["cone", "cone"]}, "'categories' names 'cone' twice"),
        ({"depth_scale": True}, "'depth_scale' is True"),
        ({"depth_scale": [1]}, "'depth_scale' is [1]"),
        ({"depth_scale": 10**400}, "'depth_scale' is 1000"),
        ({"licence": ["CC0"]}, "'licence' is ['CC0']: must be a text"),
        ({"segmentation_classes": {}}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": ["floor"]}, "one is 'floor'"),
        ({"segmentation_classes": [CLASSES[0] | {"id": True}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0] | {"id": -1}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0] | {"id": 1.0}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0] | {"color": "abc"}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0] | {"color": [0, 0, 256]}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0] | {"name": None}]}, "'segmentation_classes' must be a list"),
        ({"segmentation_classes": [CLASSES[0], CLASSES[0]]}, "has id 0 twice"),
        ({"segmentation_classes": [CLASSES[0], CLASSES[0] | {"id": 1}]}, "gives the color [0, 0, 0] to the ids 0, 1"),
    ],
)
def test_check_and_loader_refuse_the_same_of_dataset_json(root, changes, message):
    describe(root, **changes)
    assert message in loads(root)
    assert message in reasons(root)[0]


def test_check_lists_all_that_is_wrong_with_dataset_json_and_reads_on(root):
    describe(root, modalities=["rgb", "dept"], categories=3, depth_scale=-1, segmentation_classes=[1])
    manifest(root, {"id": "a", "category": "cone", "rgb": "none.png"})
    found = [str(problem) for problem in check_dataset(root).problems]
    assert len(found) == 5
    assert found[4] == "train/none.png: no such file (sample train/a)"


def test_equal_class_names_are_no_fault(root):
    describe(root, segmentation_classes=[entry | {"name": "crane"} for entry in CLASSES])
    assert check_dataset(root).problems == ()


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_only_line_feeds_end_lines_and_a_byte_order_mark_is_none(root, ending):
    rows = [{"id": "a\u2028b", "rgb": "a.png"}, {"id": "c\u0085d\x0b", "rgb": "a.png"}, {"id": 7, "rgb": "a.png"}]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    manifest(root, text=b"\xef\xbb\xbf" + ending.join(lines) + ending * 2)
    (root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + (root / "dataset.json").read_bytes())
    assert check_dataset(root).problems == ()
    assert [sample.id for sample in read_manifest(read_dataset_info(root), "train")] == [
        "a\u2028b",
        "c\u0085d\x0b",
        "7",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": True, "rgb": "a.png"}, "'id' is True"),
        ({"id": ["a"], "rgb": "a.png"}, "'id' is ['a']"),
        ({"id": "\ud800", "rgb": "a.png"}, "'id' is '\\ud800'"),
        ({"id": 1, "rgb": "a.png"}, "id '1' appears twice, first on line 1"),
        ({"id": "x", "rgb": "a.png", "category": 0}, "'category' is 0: must be the name"),
        ({"id": "x", "rgb": "a.png", "category": ["cone"]}, "'category' is ['cone']"),
        ({"id": "x", "rgb": "a.png", "category": "coen"}, "unknown category 'coen': did you mean 'cone'?"),
        ({"id": "x", "rgb": ["a.png"]}, "rgb is ['a.png']: a path is a string"),
        ({"id": "x", "rgb": ""}, "rgb is '': a path is a string"),
        ({"id": "x", "rgb": "a\0b"}, "no file has such a name"),
        ({"id": "x", "rgb": "\ud800.png"}, "no file has such a name"),
        ({"id": "x", "rgb": "n" * 300}, "no file has such a name"),
        ({"id": "x", "rgb": "n/" * 3000}, "no file has such a name"),
        ({"id": "x", "depth": "a.png"}, "'depth' is not among those of dataset.json (rgb, segmentation)"),
        ({"id": "x", "segmentaton": "a.png", "rgb": "a.png"}, "did you mean 'segmentation'?"),
        ({"id": "x"}, "no modality"),
        ([1], "holds [1]"),
        ("text", "holds 'text'"),
        (None, "holds None"),
    ],
)
def test_check_and_loader_refuse_the_same_lines(root, row, message):
    manifest(root, {"id": "1", "rgb": "a.png"}, row, {"id": "2", "rgb": "a.png"})
    assert "manifest.jsonl, line 2: " in loads(root)
    assert message in loads(root)
    (reason,) = reasons(root)
    assert reason.startswith("train/manifest.jsonl:2: ")
    assert message in reason


def test_long_deep_and_damaged_lines_are_passed_over(root):
    good = b'{"id": "%d", "rgb": "a.png"}'
    bad = [b'{"id": "' + b"x" * 2**21 + b'"}', b"[" * 10**5, b"\xff\xfe", b'{"id": NaN}', b'{"id": 1, "id": 2}', b"{"]
    lines = [line for number, wrong in enumerate(bad) for line in (wrong, good % number)]
    manifest(root, text=b"\n".join(lines))
    report = check_dataset(root)
    assert report.num_samples == {"train": len(bad)}
    assert [problem.line for problem in report.problems] == [1, 3, 5, 7, 9, 11]
    assert "the line is longer than 1048576 bytes" in loads(root)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../outside.png", "sub/../../../outside.png", "link/../outside.png"]
)
def test_paths_stay_in_the_dataset_unless_allowed(root, path):
    Image.new("RGB", (4, 4)).save(root.parent / "outside.png")
    (root.parent / "elsewhere").mkdir(exist_ok=True)
    (root / "train/link").symlink_to(root.parent / "elsewhere")
    manifest(root, {"id": "x", "rgb": path})
    assert "leads out of the dataset" in loads(root)
    (reason,) = reasons(root)
    assert "--allow_outside accepts that" in reason
    (sample,) = read_manifest(read_dataset_info(root, allow_outside=True), "train")
    assert sample.files["rgb"] == root / "train" / path
    assert not any("leads out" in problem.reason for problem in check_dataset(root, allow_outside=True).problems)


def test_paths_may_go_up_within_the_dataset_and_links_may_lead_anywhere(root):
    (root / "shared").mkdir()
    picture = root.parent / "elsewhere.png"
    Image.new("RGB", (4, 4)).save(picture)
    (root / "shared/x.png").symlink_to(picture)
    manifest(root, {"id": "x", "rgb": "../shared/x.png"}, {"id": "y", "rgb": str(root.absolute() / "train/a.png")})
    assert check_dataset(root).problems == ()
    assert loads(root) == ""


def test_names_that_are_no_utf8(root):
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (4, 4)).save(root / "train" / name)
    manifest(root, {"id": "x", "rgb": name})
    assert check_dataset(root).problems == ()
    assert loads(root) == ""


def test_hidden_folders_are_no_splits(root):
    for name in (".ipynb_checkpoints", "__MACOSX", "._train"):
        (root / name).mkdir()
        (root / name / "manifest.jsonl").write_text("{")
    assert list_splits(root) == ["train"]
    assert check_dataset(root).problems == ()


def test_pipes_are_no_files(root):
    (root / "train/manifest.jsonl").unlink()
    os.mkfifo(root / "train/manifest.jsonl")
    assert "no such file" in loads(root)
    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")
    assert "is a FIFO" in loads(root)
    assert any("is a FIFO" in reason for reason in reasons(root))


_PIECES = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        "\u2028".encode(),
    ),
    *(
        b'"id"',
        b'"rgb"',
        b'"depth"',
        b'"category"',
        b'"a.png"',
        b'"cone"',
        b'"/etc"',
        b'"../x"',
        b'"rgbb"',
        b'"\\ud800"',
    ),
    *(b"null", b"true", b"1", b"-1", b"1e999", b"NaN", b"9" * 400, b'{"id": "c", "rgb": "a.png"}', b'"modalities"'),
    *(b'"categories"', b'"segmentation_classes"', b'"depth_scale"', b'"color"', b'"name"', b'["rgb"]', b"[0, 0, 0]"),
]


def _random_json(rng: np.random.Generator, depth: int = 0) -> object:
    kind = rng.integers(0, 9 if depth < 3 else 7)
    words = ["rgb", "depth", "cone", "a.png", "", "/etc", "..", "\ud800", "a\0", "x" * 300, "\u2028", "id", "1"]
    if kind < 3:
        return words[rng.integers(len(words))]
    if kind < 7:
        return [None, True, 1, -1, 0.5, 10**30, 1e300, 255][rng.integers(8)]
    keys = ["id", "category", "rgb", "depth", "segmentation", "rgbb", "name", "color", "x"]
    if kind == 7:
        return [_random_json(rng, depth + 1) for _ in range(rng.integers(0, 4))]
    return {keys[rng.integers(len(keys))]: _random_json(rng, depth + 1) for _ in range(rng.integers(0, 5))}


def _random_bytes(rng: np.random.Generator, start: bytes) -> bytes:
    """A file cut, spliced and flipped, or put together of pieces of the format."""
    if rng.random() < 0.5:
        return b"".join(_PIECES[i] for i in rng.integers(len(_PIECES), size=rng.integers(0, 30)))
    content = bytearray(start)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(content) + 1))
        piece = (
            _PIECES[rng.integers(len(_PIECES))] if rng.random() < 0.7 else bytes(rng.integers(0, 256, 3, dtype="u1"))
        )
        content[at : at + int(rng.integers(0, 5))] = piece
    return bytes(content)


def _loader_and_check_agree(root: Path) -> bool:
    """Whether both accept; neither may raise anything but the loader's UserError."""
    accepted, found = not loads(root), reasons(root)
    assert accepted == (not found), (loads(root), found)
    return accepted


def test_whatever_the_bytes_of_the_manifest_loader_and_check_agree(root):
    rng = np.random.default_rng(0)
    start = (root / "train/manifest.jsonl").read_bytes()
    accepted = 0
    for _ in range(400):
        manifest(root, text=_random_bytes(rng, start) or b"\n")
        accepted += _loader_and_check_agree(root)
        values = _random_json(rng)
        manifest(root, {"id": "x", "rgb": "a.png"} | values if isinstance(values, dict) else values)
        accepted += _loader_and_check_agree(root)
    assert 20 < accepted < 780  # the inputs are neither all hopeless nor all harmless


def test_whatever_the_bytes_of_dataset_json_loader_and_check_agree(root):
    rng = np.random.default_rng(1)
    start = (root / "dataset.json").read_bytes()
    manifest(root, {"id": "a", "rgb": "a.png"})
    accepted = 0
    for _ in range(400):
        (root / "dataset.json").write_bytes(_random_bytes(rng, start))
        if not parse_description(root)[1]:
            info = read_dataset_info(root)
            assert info.modalities
        accepted += _loader_and_check_agree(root)
        keys = ["modalities", "categories", "depth_scale", "segmentation_classes", "licence", "provenance"]
        changes = {keys[i]: _random_json(rng) for i in rng.integers(len(keys), size=rng.integers(0, 3))}
        describe(root, **changes)
        accepted += _loader_and_check_agree(root)
    assert 20 < accepted < 780
