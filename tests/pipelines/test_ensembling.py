"""Several estimates as one: against diffusers' own ensembling, and in the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.marigold import MarigoldDepthPipeline, MarigoldNormalsPipeline

from mmdit.errors import UserError
from mmdit.modalities.codec import Codec
from mmdit.modalities.depth import DepthCodec
from mmdit.modalities.normal import NormalCodec
from mmdit.modalities.segmentation import SegmentationCodec
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def members(noise: float, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A smooth map from 0 to 1, and estimates of it up to scale and shift, half as noisy on the left."""
    y, x = np.mgrid[0:1:24j, 0:1:32j]
    true = np.sin(3 * x) + y**2
    true = (true - true.min()) / np.ptp(true)
    noisy = true + noise * RNG.normal(size=(count, 24, 32)) * np.where(x < 0.5, 0.5, 1)
    scales, shifts = RNG.uniform(0.4, 0.8, (count, 1, 1)), RNG.uniform(0, 0.2, (count, 1, 1))
    return true, (scales * noisy + shifts).astype(np.float32)


def test_depth_is_aligned_by_scale_and_shift():
    true, exact = members(0)
    depth, uncertainty = DepthCodec("depth").ensemble(exact)
    np.testing.assert_allclose(depth, true, atol=1e-5)
    assert uncertainty.max() < 1e-5
    true, noisy = members(0.05)
    depth, uncertainty = DepthCodec("depth").ensemble(noisy)
    assert (depth.min(), depth.max()) == (0, 1)
    assert np.abs(depth - true).mean() < 0.6 * np.abs(_unit(noisy[0]) - true).mean()
    assert uncertainty[:, 16:].mean() == pytest.approx(2 * uncertainty[:, :16].mean(), rel=0.2)
    theirs, spread = MarigoldDepthPipeline.ensemble_depth(torch.from_numpy(noisy)[:, None], output_uncertainty=True)
    assert np.corrcoef(depth.ravel(), theirs.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(depth, theirs[0, 0], atol=0.05)
    np.testing.assert_allclose(uncertainty.mean(), spread.mean(), rtol=0.1)
    constant, none = DepthCodec("depth").ensemble(np.full((3, 4, 4), 0.7, np.float32))
    assert np.isfinite(constant).all()
    assert not none.any()


def _unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def test_normals_are_averaged_as_in_marigold():
    vectors = RNG.normal(size=(5, 6, 8, 3)) + np.array([0, 0, 4])
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    mean, uncertainty = NormalCodec().ensemble(vectors)
    channels = torch.from_numpy(vectors).permute(0, 3, 1, 2)
    theirs, spread = MarigoldNormalsPipeline.ensemble_normals(channels, True, "mean")
    np.testing.assert_allclose(mean, theirs[0].permute(1, 2, 0), atol=1e-5)
    np.testing.assert_allclose(uncertainty, spread[0, 0], atol=1e-5)
    opposite = np.stack([vectors[0], -vectors[0]])
    np.testing.assert_array_equal(NormalCodec().ensemble(opposite)[0], vectors[0])


def test_labels_are_voted_on_and_numbers_have_a_median():
    labels = np.array([[[3, 7]], [[3, 7]], [[5, 7]], [[5, 2]], [[3, 7]]])
    value, uncertainty = SegmentationCodec(None).ensemble(labels)
    assert value.tolist() == [[3, 7]]
    np.testing.assert_allclose(uncertainty, [[0.4, 0.2]], atol=1e-6)
    value, uncertainty = Codec().ensemble(np.array([[[0.1]], [[0.2]], [[0.9]]], np.float32))
    np.testing.assert_allclose([value[0, 0], uncertainty[0, 0]], [0.2, 0.1], atol=1e-6)


def test_a_call_is_its_members_combined(pipe: MultimodalDiTPipeline) -> None:
    seeds = [torch.Generator().manual_seed(i) for i in (3, 4)]
    settings: dict[str, Any] = {"conditions": {"rgb": list(RGB)}, "output_type": "np"}
    out = pipe(**settings, ensemble_size=4, output_uncertainty=True, generator=seeds)
    generators = [torch.Generator().manual_seed(i) for i in (3, 4)]
    alone = [pipe(**settings, generator=generators) for _ in range(4)]  # each goes on where the last one stopped
    for name in ("depth", "normal", "segmentation"):
        for index in range(2):
            value, spread = pipe.codecs[name].ensemble(np.stack([one[name][index] for one in alone]))
            np.testing.assert_allclose(out[name][index], value, atol=1e-4)
            np.testing.assert_allclose(out.uncertainty[name][index], spread, atol=1e-4)
    assert "rgb" not in out.uncertainty
    assert out.visualize_uncertainty()[1].size == (32, 32)
    assert pipe(**settings, ensemble_size=4, seed=0).uncertainty is None
    given = {"rgb": RGB[0], "depth": np.linspace(1, 5, 1024, dtype=np.float32).reshape(32, 32)}
    both = pipe(conditions=[given, {"rgb": RGB[1]}], ensemble_size=2, output_uncertainty=True, seed=0)
    assert not both.uncertainty["depth"][0].any()
    assert both.uncertainty["depth"][1].any()
    larger = np.kron(RGB[0], np.ones((2, 3, 1), np.uint8))
    matched = pipe(conditions={"rgb": larger}, ensemble_size=2, output_uncertainty=True, match_input_resolution=True)
    assert matched.uncertainty["normal"].shape == (1, 64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ensemble_size": 0}, "ensemble_size is 0: give a whole number from 1 to 1000"),
        ({"ensemble_size": 2.0}, "ensemble_size is 2.0: give a whole number"),
        ({"output_uncertainty": True}, "output_uncertainty is True, and ensemble_size is 1: give at least 2"),
        (
            {"ensemble_size": 3, "conditions": None, "class_labels": "cone"},
            "estimates of a whole picture are ensembled",
        ),
        ({"ensemble_size": 3, "mask": np.ones((32, 32))}, "and neither mask nor keep"),
        ({"ensemble_size": 3, "latents": torch.zeros(2, 4, 4, 8, 8)}, "each estimate draws noise of its own"),
        ({"ensemble_size": 3, "output_type": "latent"}, "latents are not ensembled"),
    ],
)
def test_bad_input(pipe: MultimodalDiTPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**({"conditions": {"rgb": RGB}} | arguments))
