from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from mmdit.errors import UserError
from mmdit.task import (
    MIXTURES,
    TASKS,
    Mixture,
    Role,
    Task,
    TaskMixture,
    embedding_roles,
    role_timesteps,
    supervised_mask,
    without_missing,
)

MODALITIES = ("rgb", "depth", "normal", "segmentation")
G, C, U, A = Role.GENERATE, Role.CONDITION, Role.UNSUPERVISED, Role.ABSENT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(row: Tensor) -> str:
    """Name the task of a row of MMGen's mixture from its roles alone (nothing dropped from the loss)."""
    roles = row.tolist()
    if roles == [G, U, U, U]:
        return "rgb_only"
    return "joint" if roles == [G] * 4 else "one_given" if roles.count(C) == 1 and roles.count(G) == 3 else "other"


def test_role_functions_follow_the_table() -> None:
    roles = torch.tensor([[G, C, U, A], [A, U, C, G]])
    times = role_timesteps(roles, torch.tensor([0.25, 0.75]), torch.tensor([0.001, 0.002]))
    torch.testing.assert_close(times, torch.tensor([[0.25, 0.001, 0.25, 1.0], [1.0, 0.75, 0.002, 0.75]]))
    assert supervised_mask(roles).tolist() == [[True, False, False, False], [False, False, False, True]]
    assert embedding_roles(roles).tolist() == [[G, C, G, A], [A, G, C, G]]


def test_condition_time_may_be_one_number() -> None:
    times = role_timesteps(torch.tensor([[C, G]]).expand(3, 2), torch.tensor([0.1, 0.2, 0.3]), 0.005)
    torch.testing.assert_close(times, torch.tensor([[0.005, 0.1], [0.005, 0.2], [0.005, 0.3]]))


@pytest.mark.parametrize(
    ("mixture", "rows"),
    [
        ("mmgen", ["GGGG", "GUGC", "GUUU", "GUUU", "GCUU", "GUUU"]),
        ("any_to_any", ["GGCG", "GGGG", "CGGG", "GGCC", "CGGG", "AAAG"]),
    ],
)
def test_a_seed_draws_the_same_roles_in_every_version(mixture: str, rows: list[str]) -> None:
    """Values of version 0.1.0: a run that was started with it goes on with the same draws."""
    drawn = TaskMixture(mixture, MODALITIES)(6, generator(3))
    assert ["".join(Role(value).name[0] for value in row) for row in drawn.tolist()] == rows


def test_a_task_of_another_modality_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "depth_given", Task(given="depth"))
    monkeypatch.setitem(TASKS, "normal_only", Task(supervised="normal"))
    names = ("depth", "normal")
    assert TaskMixture({"depth_given": 1.0}, names)(2, generator()).tolist() == [[C, G]] * 2
    assert TaskMixture({"normal_only": 1.0}, names, drop_loss=True)(2, generator()).tolist() == [[U, G]] * 2
    with pytest.raises(UserError, match="task 'depth_given' needs the modality 'depth'; the model has rgb"):
        TaskMixture({"depth_given": 1.0}, ("rgb",))
    mixture = Mixture({"joint": 1.0}, drop_loss=True, protected="depth")
    rows = torch.cat([TaskMixture(mixture, names)(8, generator(seed)) for seed in range(20)])
    assert (rows[:, 0] == G).all()  # never out of the loss
    assert (rows[:, 1] == U).any()


def test_fixed_tasks() -> None:
    assert TASKS["joint"](2, MODALITIES, generator()).tolist() == [[G] * 4] * 2
    assert TASKS["rgb_only"](1, MODALITIES, generator()).tolist() == [[G, U, U, U]]
    assert TASKS["rgb_given"](1, ("depth", "rgb"), generator()).tolist() == [[G, C]]


def test_one_given_is_uniform_over_modalities() -> None:
    roles = TASKS["one_given"](8000, MODALITIES, generator())
    assert ((roles == C).sum(1) == 1).all()
    assert ((roles == G).sum(1) == 3).all()
    counts = (roles == C).sum(0)  # binomial(8000, 1/4): standard deviation 39
    assert (counts - 2000).abs().max() < 160


def test_subset_given_is_uniform_over_proper_subsets() -> None:
    roles = TASKS["subset_given"](14000, MODALITIES, generator())
    counts = Counter(tuple(row) for row in roles.tolist())
    assert len(counts) == 2**4 - 2
    assert set(roles.unique().tolist()) == {G, C}
    assert max(abs(count - 1000) for count in counts.values()) < 130  # standard deviation 30


def test_counts_are_exact_where_whole() -> None:
    mixture = TaskMixture("mmgen", MODALITIES, drop_loss=False)
    for seed in range(20):
        tasks = Counter(task_of(row) for row in mixture(16, generator(seed)))
        assert tasks == {"rgb_only": 8, "joint": 4, "one_given": 4}


def test_counts_are_rounded_up_or_down_and_right_on_average() -> None:
    mixture = TaskMixture("mmgen", MODALITIES, drop_loss=False)
    totals: Counter[str] = Counter()
    for seed in range(600):
        tasks = Counter(task_of(row) for row in mixture(6, generator(seed)))
        assert tasks["rgb_only"] == 3
        assert tasks["joint"] in (1, 2)
        assert tasks["joint"] + tasks["one_given"] == 3
        totals += tasks
    assert abs(totals["joint"] / 600 - 1.5) < 0.09  # standard deviation 0.02


def test_tasks_do_not_depend_on_the_position_in_the_batch() -> None:
    mixture = TaskMixture({"joint": 1, "rgb_given": 1}, MODALITIES)
    given = torch.stack([mixture(8, generator(seed))[:, 0] == C for seed in range(400)]).float().mean(0)
    assert (given - 0.5).abs().max() < 0.11  # standard deviation 0.025


def test_the_generator_decides_everything() -> None:
    mixture = TaskMixture("any_to_any", MODALITIES)
    state = torch.get_rng_state()
    first, second, other = mixture(64, generator(1)), mixture(64, generator(1)), mixture(64, generator(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_mmgen_recipe() -> None:
    """Half RGB only; the rest half joint, half one given; outside RGB only, loss entries drop, but never RGB's."""
    mixture = TaskMixture("mmgen", MODALITIES)
    shares, conditions = [], torch.zeros(4)
    for seed in range(400):
        roles = mixture(32, generator(seed))
        rgb_only = (roles[:, 0] == G) & (roles[:, 1:] == U).all(1)
        assert not (roles == A).any()
        assert (roles[:, 0] != U).all()
        assert rgb_only.sum() >= 16  # 16 by design; a joint row may lose all of its other entries
        assert ((roles == C).sum(1) <= 1).all()
        assert (roles == C).any(1).sum() == 8
        conditions += (roles == C).sum(0)
        others = roles[(roles == C).any(1)][:, 1:]
        shares.append((others == U).sum() / (others != C).sum())
    # the number of dropped entries is uniform from none to all: half of them on average
    assert abs(torch.stack(shares).mean() - 0.5) < 0.05
    assert (conditions / conditions.sum() - 0.25).abs().max() < 0.03


def test_any_to_any_makes_some_absent_and_always_has_something_to_generate() -> None:
    roles = TaskMixture("any_to_any", MODALITIES)(20000, generator())
    absent = (roles == A).any(1).float().mean()
    assert abs(absent - 0.1) < 0.01
    assert (roles == G).any(1).all()
    assert not (roles == U).any()


def test_missing_data_is_absent() -> None:
    roles = torch.tensor([[G, G, C, U], [G, C, C, C], [G, U, U, U], [C, G, G, G]])
    present = torch.tensor(
        [[True, False, True, True], [False, True, True, True], [False, True, True, True], [False] * 4]
    )
    out = without_missing(roles, present)
    assert out[0].tolist() == [G, A, C, U]
    assert out[1].tolist() == [A, G, G, G]  # nothing left to generate: it generates what it was given
    assert out[2].tolist() == [A, G, G, G]
    assert out[3].tolist() == [A] * 4
    # MMGen's dropped losses: rows that generated nothing before have lost nothing
    dropped = torch.tensor([[C, U, U, U], [U, U, U, C]])
    assert torch.equal(without_missing(dropped, torch.ones(2, 4, dtype=torch.bool)), dropped)
    drawn = TaskMixture("understanding", MODALITIES)(4, generator(), present)
    assert (drawn[~present] == A).all()


def test_one_modality_is_always_generated() -> None:
    assert (TaskMixture("any_to_any", ("rgb",))(5, generator()) == G).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_whole_data_change_no_role(name: str) -> None:
    mixture, everything = TaskMixture(name, MODALITIES), torch.ones(512, 4, dtype=torch.bool)
    assert torch.equal(mixture(512, generator(), everything), mixture(512, generator()))
    if name == "mmgen":
        mixture = TaskMixture({"rgb_given": 1.0}, MODALITIES, drop_loss=True)
        assert (mixture(512, generator(), everything)[:, 0] == C).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_shapes_and_values(name: str) -> None:
    roles = TaskMixture(name, MODALITIES)(7, generator())
    assert roles.shape == (7, 4)
    assert set(roles.unique().tolist()) <= {int(role) for role in Role}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture": "mmgenn"}, "'mmgenn'.*did you mean 'mmgen'"),
        ({"mixture": {"joined": 1.0}}, "'joined'.*did you mean 'joint'"),
        ({"mixture": {"joint": -1.0}}, "-1.0.*>= 0"),
        ({"mixture": {"joint": 0.0}}, "sum to 0.0"),
        ({"mixture": "joint"}, "unknown task mixture 'joint'"),
        ({"mixture": "mmgen", "absent_share": 1.5}, "absent_share is 1.5"),
    ],
)
def test_bad_mixtures(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskMixture(modalities=MODALITIES, **arguments)  # type: ignore[arg-type]


def test_rgb_tasks_need_rgb() -> None:
    with pytest.raises(UserError, match="needs the modality 'rgb'; the model has depth, normal"):
        TaskMixture("understanding", ("depth", "normal"))
