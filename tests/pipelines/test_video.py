"""The filter against closed forms, and frames through a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from mmdit.errors import UserError
from mmdit.modalities.codec import Codec
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.segmentation import SegmentationCodec
from mmdit.pipelines.video import SAME_COLOUR, Steady, understand_video

RNG = np.random.default_rng(0)


def one(value: float, colour: int = 0) -> dict[str, np.ndarray]:
    """A map and a picture of one pixel."""
    return {"rgb": np.full((1, 1, 3), colour, np.uint8), "map": np.full((1, 1), value, np.float32)}


def test_still_picture_is_an_exponential_average():
    steady = Steady({"map": Codec()}, 0.6)
    found = [steady(one(value))["map"].item() for value in (1.0, 0.0, 0.0, 2.0)]
    assert found == pytest.approx([1.0, 0.6, 0.36, 0.6 * 0.36 + 0.4 * 2])


def test_what_changes_is_taken_as_it_is():
    steady = Steady({"map": Codec()}, 0.6)
    steady(one(1.0, 0))
    assert steady(one(0.0, 255))["map"].item() == pytest.approx(0, abs=1e-6)  # a cut
    steady(one(1.0, 0))
    weight = 0.6 * np.exp(-((51 / 255 / 4 / SAME_COLOUR) ** 2) / 1)  # of a change by a quarter of 51 levels, 0.05
    assert steady(one(0.0, 13))["map"].item() == pytest.approx(weight, rel=0.05)


def test_zero_is_each_frame_for_itself():
    steady = Steady({"map": Codec()}, 0.0)
    assert [steady(one(value))["map"].item() for value in (1.0, 0.25)] == [1.0, 0.25]


def test_normals_stay_unit_vectors():
    codec = NormalCodec()
    first, second = (np.array([[vector]], np.float32) for vector in ((1.0, 0, 0), (0, 1.0, 0)))
    known = codec.follow(
        codec.follow(None, first, np.zeros((1, 1), np.float32)), second, np.full((1, 1), 0.5, np.float32)
    )
    np.testing.assert_allclose(codec.followed(known)[0, 0], [0.5**0.5, 0.5**0.5, 0], atol=1e-6)
    opposite = codec.follow(first, -first, np.full((1, 1), 0.5, np.float32))
    np.testing.assert_array_equal(opposite, -first)


def test_label_of_one_frame_is_outvoted():
    codec, weight = SegmentationCodec(), np.full((1, 1), 0.6, np.float32)
    known, labels = None, []
    for label in (3, 3, 3, 7, 3, 7, 7, 7):
        known = codec.follow(known, np.full((1, 1), label, np.int64), weight)
        labels.append(codec.followed(known).item())
    assert labels == [3, 3, 3, 3, 3, 3, 7, 7]
    changed = codec.follow(known, np.full((1, 1), 5, np.int64), np.zeros((1, 1), np.float32))
    assert codec.followed(changed).item() == 5


def test_votes_are_those_of_a_full_count():
    """Of two labels, the pair (label, weight) holds all: against the averages of both."""
    codec = SegmentationCodec()
    weights = RNG.uniform(0, 0.7, (200, 1, 1)).astype(np.float32)
    known, votes, agree = None, np.zeros(2), 0
    for weight, label in zip(weights, RNG.integers(0, 2, 200), strict=True):
        known = codec.follow(known, np.full((1, 1), label, np.int64), weight)
        votes = weight.item() * votes + (1 - weight.item()) * np.eye(2)[label]
        agree += codec.followed(known).item() == votes.argmax()
    assert agree >= 170


def test_frames_of_other_sizes_are_refused():
    steady = Steady({"map": Codec()})
    steady(one(1.0))
    with pytest.raises(UserError, match=r"a frame is 2 x 2 .* and the one before 1 x 1"):
        steady({"rgb": np.zeros((2, 2, 3), np.uint8), "map": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match=r"temporal is 1: give a number from 0"):
        Steady({}, 1.0)


def frames(count: int = 5) -> Iterator[Image.Image]:
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for number in range(count):
        yield Image.fromarray(np.roll(pixels, number // 3, axis=1))


def test_understand_video(make_pipeline):
    pipe = make_pipeline()
    pictures = list(frames())
    alone = list(understand_video(pipe, pictures, temporal=0, batch_size=2, output_type="np"))
    together = pipe(pictures, seed=[0] * 5, output_type="np")
    assert [out.depth.shape for out in alone] == [(1, 32, 32)] * 5
    np.testing.assert_allclose(np.concatenate([out.depth for out in alone]), together.depth, atol=1e-5)
    np.testing.assert_allclose(alone[0].depth, alone[1].depth, atol=1e-5)  # the same picture, the same noise

    steady = list(understand_video(pipe, iter(pictures), batch_size=4))
    assert isinstance(steady[0].rgb[0], Image.Image)
    still = np.all(np.asarray(pictures[3]) == np.asarray(pictures[2]), axis=-1)
    assert not still.all()
    np.testing.assert_allclose(steady[1].depth, alone[1].depth, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(steady[4].normal, axis=-1), 1, atol=1e-5)
    assert steady[4].visualize_depth()[0].size == (32, 32)


def test_frames_stream(make_pipeline):
    """No more than a batch is taken before its outputs are given."""
    taken = []

    def endless() -> Iterator[Image.Image]:
        while True:
            taken.append(1)
            yield Image.new("RGB", (32, 32))

    outputs = understand_video(make_pipeline(), endless(), batch_size=2)
    next(outputs)
    assert len(taken) == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temporal": 1.0}, "temporal is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt": "a cone"}, "prompt is given"),
        ({"output_type": "latent"}, "output_type is 'latent'"),
    ],
)
def test_bad_options_are_refused_at_once(make_pipeline, options, expected):
    with pytest.raises(UserError, match=expected):
        understand_video(make_pipeline(), frames(), **options)


def test_frames_must_have_one_size(make_pipeline):
    pictures = [Image.new("RGB", (32, 32)), Image.new("RGB", (48, 32))]
    with pytest.raises(UserError, match="a frame is 48 x 32, the first 32 x 32"):
        list(understand_video(make_pipeline(), pictures))
