from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities import build_codec, get_modalities
from mmdit.pipelines.conditions import common_count, encode_conditions, read_conditions

CODECS = {name: build_codec(m) for name, m in get_modalities(["rgb", "depth", "normal", "segmentation"]).items()}
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
METRES = RNG.uniform(1, 9, (4, 6)).astype(np.float32)
LABELS = RNG.integers(0, 8, (4, 6))


def encode(may_differ: bool = False, size: tuple[int, int] = (4, 6), **conditions: Any) -> dict[str, torch.Tensor]:
    return encode_conditions(read_conditions(conditions, CODECS), CODECS, *size, may_differ).images


@pytest.mark.parametrize(
    "rgb",
    [
        Image.fromarray(RGB),
        RGB,
        torch.from_numpy(RGB),
        RGB / np.float32(255),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,  # (3, H, W), as tensors are kept
        [Image.fromarray(RGB)],
        RGB[None],
        Image.fromarray(np.dstack([RGB, np.full((4, 6), 255, np.uint8)]), mode=None),
    ],
    ids=["pil", "uint8", "tensor", "floats", "channels first", "list", "batch", "rgba"],
)
def test_rgb_in_every_form(rgb: Any) -> None:
    out = encode(rgb=rgb)["rgb"]
    assert out.shape == (1, 3, 4, 6)
    expected = torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_images_of_other_modes() -> None:
    grey = RGB[..., 0]
    expected = torch.from_numpy(grey) / 127.5 - 1
    for image in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey).convert("P"),
    ):
        out = encode(rgb=image)["rgb"][0]
        for channel in out:
            torch.testing.assert_close(channel, expected, atol=1e-5, rtol=0)
    clear = Image.fromarray(np.dstack([RGB, np.zeros((4, 6), np.uint8)]))
    assert (encode(rgb=clear)["rgb"] == 1).all()  # transparent = white


def test_metres_and_relative_depth_are_told_apart() -> None:
    encoded = encode(depth=METRES)["depth"]
    torch.testing.assert_close(encoded, CODECS["depth"].encode(METRES)[None])
    relative = CODECS["depth"].decode(encoded)
    assert relative.min() == 0  # a value there, not an invalid pixel
    torch.testing.assert_close(
        encode(depth=relative)["depth"], CODECS["depth"].encode(relative[0], relative=True)[None]
    )
    torch.testing.assert_close(encode(depth=torch.from_numpy(relative))["depth"], encode(depth=relative)["depth"])
    near = METRES.argmin() // 6, METRES.argmin() % 6
    for given in (METRES, relative):  # disparity: near is high in both readings
        assert encode(depth=given)["depth"][0, 0][near] == 1


def test_unit_of_depth_does_not_matter() -> None:
    millimetres = np.round(METRES * 1000).astype(np.uint16)
    torch.testing.assert_close(encode(depth=millimetres), encode(depth=METRES), atol=2e-3, rtol=0)
    torch.testing.assert_close(encode(depth=Image.fromarray(millimetres)), encode(depth=millimetres))


def test_depth_in_eight_bits_is_relative_as_on_the_command_line() -> None:
    relative = CODECS["depth"].decode(CODECS["depth"].encode(METRES)[None])
    grey = np.round(relative[0] * 255).astype(np.uint8)
    assert grey.min() == 0  # a value there, not an invalid pixel
    for given in (grey, Image.fromarray(grey)):
        torch.testing.assert_close(encode(depth=given), encode(depth=relative), atol=5e-3, rtol=0)


def test_invalid_depth_is_tolerated_while_something_is_valid() -> None:
    holes = METRES.copy()
    holes[0, 0], holes[1, 1], holes[2, 2] = np.nan, np.inf, 0
    assert torch.isfinite(encode(depth=holes)["depth"]).all()
    with pytest.raises(UserError, match=r"condition 'depth': .*no valid pixel"):
        encode(depth=np.full((4, 6), np.nan))


def test_normals_and_labels() -> None:
    vectors = RNG.normal(size=(4, 6, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    out = encode(normal=vectors, segmentation=LABELS)
    torch.testing.assert_close(out["normal"][0].permute(1, 2, 0), torch.from_numpy(vectors))
    assert (CODECS["segmentation"].decode(out["segmentation"])[0] == LABELS).all()
    as_image = Image.fromarray(np.round((vectors + 1) / 2 * 255).astype(np.uint8))
    torch.testing.assert_close(encode(normal=as_image)["normal"], out["normal"], atol=0.02, rtol=0)
    torch.testing.assert_close(encode(normal=vectors.transpose(2, 0, 1))["normal"], out["normal"])
    palette = Image.fromarray(LABELS.astype(np.uint8), mode=None).convert("P")
    assert encode(segmentation=palette)["segmentation"].shape == (1, 3, 4, 6)
    assert torch.equal(encode(segmentation=LABELS[..., None])["segmentation"], out["segmentation"])


def test_batches_and_one_for_all() -> None:
    out = encode(
        rgb=[RGB, Image.fromarray(RGB), RGB], depth=METRES, segmentation=np.stack([LABELS, 7 - LABELS, LABELS])
    )
    assert {name: len(images) for name, images in out.items()} == {"rgb": 3, "depth": 3, "segmentation": 3}
    with pytest.raises(UserError, match="conditions differ in number: rgb 2, depth 3"):
        encode(rgb=[RGB, RGB], depth=[METRES] * 3)
    assert common_count({"a": 1, "b": 1}, "inputs") == 1


def test_everything_is_resized_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        out = encode(size=(8, 12), rgb=RGB, segmentation=LABELS)
    assert "4 x 6 pixels (height x width) are resized to 8 x 12" in caplog.text
    assert out["rgb"].shape == (1, 3, 8, 12)
    assert (CODECS["segmentation"].decode(out["segmentation"])[0] == LABELS.repeat(2, 0).repeat(2, 1)).all()
    half = encode(size=(2, 3), rgb=np.full((4, 6, 3), 0.5), depth=METRES)
    torch.testing.assert_close(half["rgb"], torch.zeros(1, 3, 2, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(half["depth"][0], CODECS["depth"].encode(METRES[1::2, 1::2]))  # nearest, never a mean


def test_different_sizes_are_refused_unless_a_size_is_given() -> None:
    big = METRES.repeat(2, 0).repeat(2, 1)
    with pytest.raises(UserError, match=r"differ in size .*rgb 4 x 6, depth 8 x 12; give .* height and width"):
        encode(rgb=RGB, depth=big)
    assert encode(may_differ=True, rgb=RGB, depth=big)["depth"].shape == (1, 3, 4, 6)
    assert encode(rgb=[RGB, RGB[:2]])["rgb"].shape == (2, 3, 4, 6)  # samples of their own need no common size


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"image": RGB}, "unknown modality in conditions 'image'"),
        ({"rgb": RGB, "depth": METRES, "normal": RGB, "segmentation": LABELS}, "hold all modalities .* leave out"),
        ({"rgb": "image.png"}, "condition 'rgb' is a path, 'image.png': open it with PIL.Image.open, or give an array"),
        ({"rgb": [RGB, Path("a/b.png")]}, "condition 'rgb' is a path, 'a/b.png': open it"),
        ({"depth": b"depth.npy"}, "condition 'depth' is a path, 'depth.npy'"),
        ({"rgb": "https://a.b/c.png?d=e"}, "'rgb' is a URL, 'https://a.b/c.png.d=e': download it, and open it"),
        ({"rgb": "https://a.b/" + "c" * 99}, "'rgb' is a URL, '…c{80}': download it"),
        ({"rgb": None}, "condition 'rgb' is a NoneType"),
        ({"rgb": []}, "condition 'rgb' is empty"),
        ({"rgb": np.zeros((0, 6, 3), np.uint8)}, "condition 'rgb' is empty"),
        ({"rgb": METRES}, r"condition 'rgb' has shape \(4, 6\): give \(height, width, 3\)"),
        ({"rgb": METRES[..., None].repeat(3, -1)}, "condition 'rgb': .*spans"),
        ({"depth": RGB[None, None]}, r"condition 'depth' has shape"),
        ({"depth": RGB}, r"condition 'depth' has shape \(4, 6, 3\), colours: give one channel"),
        ({"rgb": torch.from_numpy(RGB).to_sparse()}, "condition 'rgb' is a sparse tensor: give tensor.to_dense"),
        ({"normal": np.tile([0.5, 0.5, 1], (4, 6, 1))}, r"condition 'normal': .* looks like \(n \+ 1\) / 2"),
        ({"normal": np.full((4, 6, 3), np.nan)}, "condition 'normal': .*NaN"),
        ({"segmentation": np.full((4, 6), 99)}, "condition 'segmentation': .*unknown label 99"),
        ({"segmentation": METRES}, "condition 'segmentation': .*integer label ids"),
    ],
)
def test_bad_conditions(conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode(**conditions)
