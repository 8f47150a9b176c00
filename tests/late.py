"""Painted environments whose observation says which reward belongs to it, and models that answer late."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from vlp_gym.engine import QueryEngine
from vlp_gym.integrations.sb3.vec import VLPVecReward
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPRewardWrapper
from vlp_gym.wrappers.capture import capture_frames

SENTENCE = "press the button"


class SeenEnv(PaintedEnv):
    """A `PaintedEnv` whose observation is the painted value: in every sample, reward == next observation.

    Args:
        lengths, env, truncate: as `PaintedEnv` has them.
        discrete: the actions; a Box otherwise.
        keys: give a dictionary.
        raises: step at which KeyboardInterrupt is raised, counted over all episodes, once.
    """

    def __init__(self, lengths=(7, 3, 1, 9), *, env=0, truncate=False, discrete=False, keys=False, raises=None):
        super().__init__(lengths, env=env, truncate=truncate)
        self.keys, self.raises, self.steps = keys, raises, 0
        if keys:
            self.observation_space = gym.spaces.Dict({"seen": PaintedEnv.observation_space})
        if not discrete:
            self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def observe(self):
        seen = np.array([painted_value(self.env, self.episode, self.elapsed)], np.float32)
        return {"seen": seen} if self.keys else seen

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed, options=options)
        return self.observe(), info

    def step(self, action):
        self.steps += 1
        if self.steps == self.raises:
            raise KeyboardInterrupt
        _, reward, terminated, truncated, info = super().step(action)
        return self.observe(), reward, terminated, truncated, info


class SlowModel(PaintedModel):
    """A `PaintedModel` that takes its time, now more and now less.

    Args:
        slowest_s: of one call.
    """

    def __init__(self, slowest_s=0.002):
        super().__init__()
        self.slowest_s, self.calls = slowest_s, 0

    def score(self, frames, text, mask):
        self.calls += 1
        time.sleep(self.slowest_s * (self.calls % 4) / 3)
        return super().score(frames, text, mask)


class GatedModel(PaintedModel):
    """A `PaintedModel` that answers only while its gate is open."""

    def __init__(self):
        super().__init__()
        self.open = True

    def score(self, frames, text, mask):
        while not self.open:
            time.sleep(0.001)
        return super().score(frames, text, mask)


def late_env(env=None, model=None, mode="async", **options):
    """One wrapped environment."""
    return VLPRewardWrapper(env or SeenEnv(), SENTENCE, model or SlowModel(), mode=mode, **options)


def late_venv(kind="separate", n_envs=2, mode="async", model=None, untaken="warn", **options):
    """A `DummyVecEnv` of wrappers with an engine each, or with one engine, or a `VLPVecReward` around it."""

    def bare(index):
        return lambda: SeenEnv(env=index, **options)

    if kind == "vector":
        venv = DummyVecEnv(capture_frames([bare(index) for index in range(n_envs)]))
        return VLPVecReward(venv, SENTENCE, model or SlowModel(), mode=mode, untaken=untaken)
    if kind == "shared":
        engine = QueryEngine(model or SlowModel(), mode=mode)
        return DummyVecEnv(
            [lambda k=k: VLPRewardWrapper(bare(k)(), SENTENCE, engine, untaken=untaken) for k in range(n_envs)]
        )
    return DummyVecEnv([lambda k=k: late_env(bare(k)(), model, mode=mode, untaken=untaken) for k in range(n_envs)])


def rewards_fit(buffer) -> bool:
    """Whether every row that may be sampled holds the reward of its own next observation."""
    seen = buffer.next_observations
    seen = seen["seen"] if isinstance(seen, dict) else seen
    rows = [row for row in range(buffer.size()) if row not in buffer._ledger.missing]
    return bool((buffer.rewards[rows] == seen[rows, :, 0]).all())


def sums_up(stats) -> bool:
    """Whether every ticket is counted once."""
    return stats["submitted"] == sum(count for name, count in stats.items() if name != "submitted")
