"""The options of the wrappers: objects, their shorthand, and both at once."""

from __future__ import annotations

import itertools
import re

import gymnasium as gym
import pytest

from vlp_gym import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames
from vlp_gym.engine import QueryEngine
from vlp_gym.rewards.options import make_stream
from vlp_gym.rewards.shaping import Shaping
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value

SENTENCE = "press the button"


def rewards(env, steps=3):
    env.reset(seed=0)
    paid = [env.step(env.action_space.sample())[1] for _ in range(steps)]
    env.close()
    return paid


def test_a_shaping_and_its_shorthand_pay_the_same():
    flat = VLPRewardWrapper(PaintedEnv(), SENTENCE, PaintedModel(), reward="delta", scale=2.0)
    given = VLPRewardWrapper(PaintedEnv(), SENTENCE, PaintedModel(), reward=Shaping("delta", scale=2.0))
    painted = [painted_value(0, 0, step) for step in range(4)]
    expected = [2 * (after - before) for before, after in itertools.pairwise(painted)]
    assert rewards(flat) == rewards(given) == pytest.approx(expected)


def test_an_engine_brings_the_window_to_every_wrapper():
    for make in (
        lambda engine: VLPRewardWrapper(PaintedEnv(), SENTENCE, engine),
        lambda engine: VLPVectorRewardWrapper(
            gym.vector.SyncVectorEnv(capture_frames([PaintedEnv])), SENTENCE, engine, reward=Shaping("preference")
        ),
    ):
        model = PaintedModel()
        rewards(make(QueryEngine(model, window=2)), steps=5)
        assert {len(window) for window in model.windows} == {1, 2}


@pytest.mark.parametrize("option", [{"scale": 2.0}, {"success_threshold": 0.5}, {"gamma": 1.0}])
def test_an_option_beside_the_shaping_that_brings_it(option):
    message = "a Shaping brings its own scale, gamma, env_reward_weight, success_* and terminate_on_success"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_stream([SENTENCE], PaintedModel(), Shaping(), **option)


@pytest.mark.parametrize("option", [{"window": 2}, {"device": "cpu"}, {"truncate": True}, {"mode": "async"}])
def test_an_option_beside_the_engine_that_brings_it(option):
    message = "a QueryEngine brings its own history, window, device, truncate and mode"
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_stream([SENTENCE], QueryEngine(PaintedModel()), **option)


def test_an_option_that_does_not_exist():
    venv = gym.vector.SyncVectorEnv(capture_frames([PaintedEnv]))
    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'windw'"):
        VLPVectorRewardWrapper(venv, SENTENCE, PaintedModel(), windw=3)


@pytest.mark.parametrize("options", [{"reward": Shaping(success_threshold=1.0, terminate_on_success=True)},
                                     {"success_threshold": 1.0, "terminate_on_success": True}])  # fmt: skip
def test_a_vector_wrapper_cannot_end_episodes(options):
    venv = gym.vector.SyncVectorEnv(capture_frames([PaintedEnv]))
    message = "terminate_on_success needs an environment that is reset by us; use VLPRewardWrapper"
    with pytest.raises(ValueError, match=f"^{message}$"):
        VLPVectorRewardWrapper(venv, SENTENCE, PaintedModel(), **options)
