from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.errors import UserError
from mmdit.flow.guidance import Guidance, guided_velocity, without_conditions
from mmdit.task import Role

ROLES = torch.tensor([[Role.CONDITION, Role.GENERATE], [Role.CONDITION, Role.GENERATE]])
PROMPT, NULL = Conditioning(torch.tensor([[3.0], [5.0]])), Conditioning(torch.zeros(2, 1))


class LinearField:
    """v = prompt + 10 where a condition is given; counts what it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, conditioning: Conditioning, roles: Tensor) -> Tensor:
        assert len(conditioning.vector) == len(roles)
        self.batches.append(len(roles))
        value = conditioning.vector[:, 0] + 10 * (roles == Role.CONDITION).any(1)
        return value[:, None, None, None, None].expand(-1, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("guidance", "null", "t", "expected", "branches"),
    [
        (Guidance(), NULL, 0.5, (13, 15), 1),
        (Guidance(scale=2), NULL, 0.5, (16, 20), 2),  # full + 1 (prompt - 0)
        (Guidance(scale=0), NULL, 0.5, (10, 10), 2),  # the null prompt alone
        (Guidance(scale=2), None, 0.5, (13, 15), 1),  # nothing was prompted
        (Guidance(condition_scale=1.5), NULL, 0.5, (18, 20), 2),  # full + 0.5 * 10
        (Guidance(scale=2, condition_scale=1.5), NULL, 0.5, (21, 25), 3),
        (Guidance(scale=2, condition_scale=1.5, interval=(0.2, 0.4)), NULL, 0.5, (13, 15), 1),
        (Guidance(scale=2, interval=(0.2, 0.5)), NULL, 0.5, (16, 20), 2),
    ],
)
def test_closed_forms(
    guidance: Guidance, null: Conditioning | None, t: float, expected: tuple[float, float], branches: int
) -> None:
    field = LinearField()
    velocity = guided_velocity(field, PROMPT, null, ROLES, guidance=guidance, t=t)
    assert velocity.shape == (2, 2, 1, 1, 1)
    torch.testing.assert_close(velocity[:, 0, 0, 0, 0], torch.tensor(expected, dtype=torch.float32))
    assert field.batches == [2 * branches]  # one evaluation, however many branches


TEXT = Conditioning(torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("w", [1.0, 7.5])
def test_fusing_is_equation_8(alpha: float, w: float) -> None:
    """α w v_u + (1 - α) w v_y + (1 - w) v_none of UMM-Diffusion (arXiv 2303.09319), in one evaluation."""
    field = LinearField()
    velocity = guided_velocity(field, PROMPT, NULL, ROLES, guidance=Guidance(w, fusing_scale=alpha), t=0.5, text=TEXT)[
        :, 0, 0, 0, 0
    ]
    u, y, none = torch.tensor([13.0, 15.0]), torch.tensor([11.0, 12.0]), torch.tensor([10.0, 10.0])
    torch.testing.assert_close(velocity, alpha * w * u + (1 - alpha) * w * y + (1 - w) * none)
    assert field.batches == [2 * ((1 if alpha in (0, 1) else 2) + (w != 1))]


@pytest.mark.parametrize(("alpha", "prompt"), [(0.0, TEXT), (1.0, PROMPT)])
def test_fusing_at_its_ends_is_one_prompt_exactly(alpha: float, prompt: Conditioning) -> None:
    guidance = Guidance(3.3, condition_scale=1.7)
    alone = guided_velocity(LinearField(), prompt, NULL, ROLES, guidance=guidance, t=0.5)
    fused = guided_velocity(
        LinearField(), PROMPT, NULL, ROLES, guidance=Guidance(3.3, 1.7, fusing_scale=alpha), t=0.5, text=TEXT
    )
    assert torch.equal(fused, alone)


def test_fusing_beside_guidance_on_the_condition() -> None:
    """The condition's absence is judged with the same mixture of prompts."""
    guidance = Guidance(condition_scale=1.5, fusing_scale=0.25)
    velocity = guided_velocity(LinearField(), PROMPT, None, ROLES, guidance=guidance, t=0.5, text=TEXT)[:, 0, 0, 0, 0]
    mixed = 0.25 * torch.tensor([3.0, 5.0]) + 0.75 * torch.tensor([1.0, 2.0])
    torch.testing.assert_close(velocity, mixed + 10 + 0.5 * 10)


def test_no_condition_costs_no_branch() -> None:
    field = LinearField()
    guided_velocity(field, PROMPT, NULL, torch.zeros_like(ROLES), guidance=Guidance(condition_scale=3), t=0.5)
    assert field.batches == [2]


def test_null_condition_is_absent() -> None:
    assert without_conditions(ROLES).tolist() == [[Role.ABSENT, Role.GENERATE]] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": (0.5, 0.2)}, r"guidance_interval is \(0.5, 0.2\)"),
        ({"interval": (0.0, 1.5)}, "guidance_interval"),
        ({"scale": -1.0}, "guidance_scale is -1.0"),
        ({"scale": float("nan")}, "guidance_scale is nan"),
        ({"scale": float("inf")}, "guidance_scale is inf"),
        ({"condition_scale": -0.5}, "condition_guidance_scale is -0.5"),
        ({"fusing_scale": 1.5}, "fusing_scale is 1.5: give a number from 0"),
        ({"fusing_scale": float("nan")}, "fusing_scale is nan"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Guidance(**settings)  # type: ignore[arg-type]
