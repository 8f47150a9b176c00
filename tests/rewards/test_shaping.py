from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.rewards.shaping import Shaping, delta, gated_progress, own_number, potential, score_of

UNIT = st.floats(0, 1)
SCORES = st.lists(UNIT, min_size=2, max_size=50)


@given(UNIT, st.floats(-1e6, 1e6))
def test_the_gate_only_ever_lowers(progress, relevance):
    assert 0 <= gated_progress(progress, relevance) <= progress
    assert gated_progress(progress, None) == progress


def test_the_gate_is_the_logistic_function():
    for logit in (-700.0, -2.0, 0.0, 3.0, 700.0):
        assert gated_progress(1.0, logit) == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-12)


@given(SCORES)
def test_deltas_add_up_to_the_change(scores):
    total = sum(delta(a, b) for a, b in pairwise(scores))
    assert total == pytest.approx(scores[-1] - scores[0], abs=1e-9)


@given(SCORES, UNIT, st.booleans())
def test_discounted_potentials_telescope(scores, gamma, terminated):
    steps = len(scores) - 1
    total = sum(
        gamma**t * potential(scores[t], scores[t + 1], gamma=gamma, terminated=terminated and t == steps - 1)
        for t in range(steps)
    )
    last = 0.0 if terminated else gamma**steps * scores[-1]
    assert total == pytest.approx(last - scores[0], abs=1e-9)


def test_the_score_of_each_kind():
    assert score_of("preference", -3.0, 0.5, 0.0) == score_of("final", -3.0, 0.5, 0.0) == -3.0
    assert score_of("progress", -3.0, 0.5, 0.0) == 0.25
    assert score_of("delta", -3.0, 0.5, None) == 0.5
    message = "the model has no progress, which reward='potential' needs; use reward=\"preference\""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        score_of("potential", 1.0, None, None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("progress", 0.75), ("preference", 0.75), ("delta", 0.5), ("potential", 0.9 * 0.75 - 0.25), ("final", 0.0)],
)
def test_scale_bonus_and_own_reward_are_added(kind, expected):
    shaping = Shaping(kind, scale=2.0, gamma=0.9, env_reward_weight=0.5, success_threshold=0.75, success_bonus=10.0)
    assert shaping.reward(0.25, 0.75, terminated=False, env_reward=-4.0) == 2 * expected + 10.0 - 2.0
    assert Shaping(kind, gamma=0.9).reward(0.25, 0.75, terminated=False) == expected


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_the_final_reward_comes_at_the_end_of_the_episode(end):
    assert Shaping("final").reward(0.25, 0.75, **{"terminated": False, end: True}) == 0.75


def test_success_is_at_or_over_the_threshold():
    assert [Shaping(success_threshold=0.5).success(score) for score in (0.49, 0.5, 0.6)] == [False, True, True]
    assert not Shaping().success(1.0)


@pytest.mark.parametrize("env_reward", [None, math.nan, math.inf])
def test_an_own_reward_that_cannot_be_mixed_in(env_reward):  # fault 18
    message = (
        f"the environment's own reward is {env_reward} and cannot be mixed in; repair it or set env_reward_weight=0"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Shaping(env_reward_weight=0.5).reward(0.0, 1.0, terminated=False, env_reward=env_reward)
    assert Shaping().reward(0.0, 1.0, terminated=False, env_reward=env_reward) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "dense"},
            "reward must be one of ('progress', 'delta', 'potential', 'preference', 'final'), got 'dense'",
        ),
        ({"gamma": 1.5}, "gamma must be in [0, 1], got 1.5"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"env_reward_weight": math.nan}, "env_reward_weight must be finite, got nan"),
        ({"success_bonus": 1.0}, "success_bonus and terminate_on_success need a success_threshold"),
        ({"terminate_on_success": True}, "success_bonus and terminate_on_success need a success_threshold"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Shaping(**arguments)


@pytest.mark.parametrize("number", [np.float32(2), np.int64(2), 2])
def test_any_number_becomes_a_python_float(number):
    shaping = Shaping("progress", scale=number)
    reward = shaping.reward(0.0, 0.5, terminated=False)
    assert (type(reward), reward) == (float, 1.0)


@pytest.mark.parametrize("value", ["1e1", True, None, [1.0]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=f"^{re.escape(f'scale must be a number, got {value!r}')}$"):
        Shaping("progress", scale=value)


@pytest.mark.parametrize(
    ("given", "number"),
    [(1, 1.0), (np.float32(0.5), 0.5), (np.array([1.0]), 1.0), (torch.tensor([2.0]), 2.0), (None, None),
     (np.array([1.0, 2.0]), None), ("3", None), (np.array([]), None)],
)  # fmt: skip
def test_the_environments_own_reward_as_one_number(given, number):
    assert own_number(given) == number
    assert type(own_number(given)) is type(number)
