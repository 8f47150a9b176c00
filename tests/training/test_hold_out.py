"""Which episodes are held out of training."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rollouts import painted

from vlp_gym.training.hold_out import hold_out


def episodes(task, tier, count, first=0):
    return [painted(task, tier, number, frames=3) for number in range(first, first + count)]


DATA = [
    *episodes("push-v3", "expert", 10), *episodes("push-v3", "random", 10), *episodes("reach-v3", "expert", 3),
    *episodes("reach-v3", "medium", 1),
]  # fmt: skip


def names(trajectories):
    return [t.name for t in trajectories]


def test_a_share_of_each_task_and_tier():
    kept, held = hold_out(DATA, 0.2, seed=0)
    counts = {(t.task, t.tier): sum((o.task, o.tier) == (t.task, t.tier) for o in held) for t in DATA}
    assert counts == {
        ("push-v3", "expert"): 2, ("push-v3", "random"): 2, ("reach-v3", "expert"): 1, ("reach-v3", "medium"): 0,
    }  # fmt: skip
    assert sorted(names([*kept, *held])) == sorted(names(DATA))
    assert names(kept) == [name for name in names(DATA) if name in names(kept)]
    seeds = [{t.seed for t in held if (t.task, t.tier) == ("push-v3", tier)} for tier in ("expert", "random")]
    assert seeds[0] == seeds[1]


def test_views_of_an_episode_stay_together():
    others = [replace(t, camera="corner3") for t in DATA]
    kept, held = hold_out([*DATA, *others], 0.3, seed=1)
    assert names(held) == 2 * names(held)[: len(held) // 2]
    assert not set(names(kept)) & set(names(held))


def test_the_seed_draws():
    held = [names(hold_out(DATA, 0.2, seed)[1]) for seed in (0, 0, 1, 2)]
    assert held[0] == held[1]
    assert len({tuple(each) for each in held}) > 1


def test_never_all_and_none_for_0():
    kept, held = hold_out(DATA, 0.99, seed=0)
    assert {(t.task, t.tier) for t in kept} == {(t.task, t.tier) for t in DATA}
    assert len(kept) == 4
    kept, held = hold_out(DATA, 0, seed=0)
    assert (len(kept), held) == (len(DATA), [])


def test_too_few():
    with pytest.raises(ValueError) as caught:
        hold_out([*episodes("push-v3", "expert", 1), *episodes("push-v3", "random", 1)], 0.2, seed=0)
    assert str(caught.value) == (
        "--hold-out: expected at least two episodes of a task and tier, got one of each (2 in all); collect more, or "
        "train without it"
    )
