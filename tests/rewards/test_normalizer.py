from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_gym.rewards.normalizer import RewardNormalizer


def vec_normalize(n_envs, gamma):
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    from vlp_gym.testing import PaintedEnv

    venv = vec_env.DummyVecEnv([PaintedEnv for _ in range(n_envs)])
    return vec_env.VecNormalize(venv, norm_obs=False, gamma=gamma)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=1, max_size=40),
    gamma=st.floats(0.0, 1.0),
)
def test_one_environment_is_scaled_as_vec_normalize_does_to_the_bit(steps, gamma):
    normalizer, theirs, episode = RewardNormalizer(1, gamma), vec_normalize(1, gamma), 0
    for reward, done in steps:
        normalizer.update(0, episode, reward)
        theirs._update_reward(np.array([reward]))
        theirs.returns[[done]] = 0
        episode += done
    rewards = np.array([reward for reward, _ in steps], np.float32)
    assert float(theirs.ret_rms.var) == normalizer.variance
    np.testing.assert_array_equal(normalizer.scale(rewards), theirs.normalize_reward(rewards))


def test_several_environments_in_the_order_of_their_deliveries():
    rng = np.random.default_rng(0)
    rewards, dones = rng.normal(size=(50, 3)), rng.random((50, 3)) < 0.1
    episodes = np.cumsum(dones, axis=0) - dones
    normalizer, theirs = RewardNormalizer(3), vec_normalize(3, 0.99)
    for reward, done in zip(rewards, dones, strict=True):
        theirs._update_reward(reward)
        theirs.returns[done] = 0
    for index in range(3):  # each in order; how they come in between does not matter
        for reward, episode in zip(rewards[:, index], episodes[:, index], strict=True):
            normalizer.update(index, int(episode), reward)
    assert normalizer.variance == pytest.approx(float(theirs.ret_rms.var), rel=1e-9)
    assert normalizer.mean == pytest.approx(float(theirs.ret_rms.mean), rel=1e-9)


def test_scaling_clips_and_gives_float32():
    normalizer = RewardNormalizer(1, clip=2.0)
    scaled = normalizer.scale(np.array([[0.5], [-7.0]]))
    assert (scaled.dtype, scaled.tolist()) == (np.float32, [[0.5], [-2.0]])


def test_other_environments_continue_no_return():
    normalizer, fresh = RewardNormalizer(1), RewardNormalizer(1)
    normalizer.update(0, 0, 1.0)
    fresh.update(0, 0, 1.0)
    normalizer.restart()
    normalizer.update(0, 0, 1.0)
    fresh.update(0, 1, 1.0)
    assert normalizer.variance == fresh.variance


def test_a_pickle_goes_on_where_it_was():
    normalizer = RewardNormalizer(2)
    normalizer.update(1, 4, 3.0)
    loaded = pickle.loads(pickle.dumps(normalizer))  # noqa: S301 (our own bytes)
    for one in (normalizer, loaded):
        one.update(1, 4, 2.0)
    assert vars(loaded) == vars(normalizer)


@pytest.mark.parametrize("wrong", [{"num_envs": 0}, {"gamma": 1.5}, {"clip": 0.0}, {"epsilon": 0.0}])
def test_arguments_that_make_no_sense(wrong):
    given = {"num_envs": 1, "gamma": 0.99, "clip": 10.0, "epsilon": 1e-8, **wrong}
    message = (
        "expected num_envs >= 1, gamma in [0, 1], and clip and epsilon over 0, got "
        + ", ".join(f"{name}={value}" for name, value in given.items())
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RewardNormalizer(**given)
