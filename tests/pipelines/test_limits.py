"""One call's bounds: refused at once, or computed in batches that give the same; NaN is an error that names the step."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from mmdit.errors import UserError
from mmdit.pipelines import limits
from mmdit.pipelines.limits import FiniteWatch, check_call, check_size
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.pipelines.sizes import Sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000: give at most 10000"),
        ({"num_images": 10**9}, r"makes 1000000000 samples of \d+ x \d+: ask for at most \d+"),
        ({"height": 2**40, "width": 64}, "height x width is 1099511627776 x 64"),
        ({"height": 2**14, "width": 2**14}, "give at most 67108864 pixels"),
    ],
)
def test_what_can_not_be_meant_is_refused_at_once(pipe: MultimodalDiTPipeline, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        pipe("cone", **arguments)


def test_bounds_are_exact() -> None:
    check_size(8192, 8192)
    with pytest.raises(UserError):
        check_size(8192, 8193)
    check_call(2**14, 256, 256)
    with pytest.raises(UserError, match="at most 16384 in one call"):
        check_call(2**14 + 1, 256, 256)
    check_call(2**4, 256, 256, 2**10)  # an ensemble's estimates are held until the last
    with pytest.raises(
        UserError, match="makes 17 samples of 256 x 256, each 1024 times: ask for at most 16384 in one call"
    ):
        check_call(2**4 + 1, 256, 256, 2**10)


def test_a_call_is_judged_by_the_size_of_more_pixels() -> None:
    assert Sizes(64, 1024, (128, 16), False).largest == (64, 1024)
    assert Sizes(64, 64, (16, 1024), False).largest == (16, 1024)
    assert Sizes(64, 64, None, False).largest == (64, 64)


@pytest.mark.parametrize("scheduler", [None, "euler_maruyama"])
def test_batches_give_what_one_pass_gives(
    pipe: MultimodalDiTPipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheduler: str | None,
) -> None:
    if scheduler:
        from mmdit.flow.schedulers import make_scheduler

        monkeypatch.setattr(pipe, "scheduler", make_scheduler(scheduler))
    pipe.set_progress_bar_config(disable=True)

    def run() -> MultimodalDiTPipeline:
        depth = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
        return pipe(
            ["cone", None, "box"],
            conditions={"depth": depth},
            num_images=2,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )

    whole = run()
    height, width = whole.depth.shape[1:]
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(limits, "MAX_BATCH_PIXELS", 4 * height * width)
    monkeypatch.setattr(limits, "MAX_BATCH_LATENTS", 5 * (pipe.transformer.config.sample_size) ** 2)
    monkeypatch.setattr(logging.getLogger("mmdit"), "propagate", True)
    split = run()
    assert f"6 samples of {height} x {width} are computed in batches of at most 4" in caplog.text
    assert max(seen) == 5
    assert sum(seen) == 2 * 12  # two steps, with guidance twice the six samples
    for name in pipe.modalities:
        level = 1 / 255 if name == "rgb" else 0.0  # a grey level may round to either side
        np.testing.assert_allclose(np.asarray(split[name]), np.asarray(whole[name]), atol=1e-4 + level)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_step_that_is_not_finite_is_named(pipe: MultimodalDiTPipeline, value: float) -> None:
    def spoil(pipe: MultimodalDiTPipeline, step: int, t: torch.Tensor, tensors: dict) -> dict:
        if step == 1:
            tensors["latents"][0, 0, 0, 0, 0] = value
        return tensors

    with pytest.raises(UserError, match="latents are not finite after step 3 of 5: take a smaller guidance scale"):
        pipe("cone", num_inference_steps=5, callback_on_step_end=spoil)


@pytest.mark.parametrize("steps", [1, 3])
def test_guidance_beyond_all_numbers_is_refused(pipe: MultimodalDiTPipeline, steps: int) -> None:
    with pytest.raises(UserError, match="not finite"):
        pipe("cone", num_inference_steps=steps, guidance_scale=3e38)


def test_a_watch_that_does_not_wait_finds_the_first_step() -> None:
    watch = FiniteWatch(4, torch.float16)
    latents = torch.zeros(2, 3)

    class OnDevice(torch.Tensor):
        @property
        def device(self) -> torch.device:
            return torch.device("meta")

    for step, value in enumerate((0.0, float("nan"), 0.0, float("inf"))):
        watch.see((latents + value).as_subclass(OnDevice), step)
    with pytest.raises(UserError, match=r"after step 2 of 4: .*float32 in place of float16"):
        watch.check()


def test_decoded_images_must_be_finite(pipe: MultimodalDiTPipeline) -> None:
    with torch.no_grad():
        bias = pipe.vae.decoder.conv_out.bias
        before = bias.clone()
        bias[0] = float("nan")
    try:
        with pytest.raises(UserError, match="the decoded rgb is not finite, after the last step"):
            pipe("cone", num_inference_steps=1)
    finally:
        with torch.no_grad():
            bias.copy_(before)
