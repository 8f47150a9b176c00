"""Painted frames and vectors of painted environments: what they must pay, and what must be left when they end."""

from __future__ import annotations

import gc
import os
import re
import signal
import threading
import time
from functools import partial

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.error import ClosedEnvironmentError

from vlp_gym.errors import VLPError
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPRewardWrapper

SENTENCE = "press the button"


def wrap(env=None, model=None, **options) -> VLPRewardWrapper:
    """A painted environment whose rewards come from a painted model."""
    return VLPRewardWrapper(env or PaintedEnv(), SENTENCE, model or PaintedModel(), **options)


def rollout(env: gym.Env, steps: int = 1000) -> list[tuple[float, dict]]:
    """The rewards and infos of one episode."""
    env.reset()
    transitions = []
    over = False
    while not over and len(transitions) < steps:
        _, reward, terminated, truncated, info = env.step(0)
        transitions.append((reward, info["vlp"]))
        over = terminated or truncated
    return transitions


def painted_fns(lengths, *, truncate=False):
    """One function for each item of `lengths`, steps of the episodes of that environment."""
    return [partial(PaintedEnv, each, env=index, truncate=truncate) for index, each in enumerate(lengths)]


class Expected:
    """One environment of the vector, in the wrapper's own numbers."""

    def __init__(self, env, lengths, *, truncate=False, every=1, reward="progress", gamma=0.99):
        self.env, self.lengths, self.truncate = env, lengths, truncate
        self.every, self.reward, self.gamma = every, reward, gamma
        self.episode = -1
        self.begin()

    def begin(self):
        self.episode, self.step, self.over = self.episode + 1, 0, False
        self.score = painted_value(self.env, self.episode, 0)

    def move(self) -> float:
        """The reward of the next step."""
        assert not self.over
        self.step += 1
        self.over = self.step >= self.lengths[min(self.episode, len(self.lengths) - 1)]
        before = self.score
        if self.over or self.step % self.every == 0:
            self.score = painted_value(self.env, self.episode, self.step)
        terminal = self.over and not self.truncate
        phi = 0.0 if terminal else self.gamma * self.score
        kinds = {"progress": self.score, "delta": self.score - before, "potential": phi - before}
        return {**kinds, "preference": self.score, "final": self.score if self.over else 0.0}[self.reward]

    @property
    def said(self):
        """The score that the info has: "final" asks for none before the end."""
        return self.score if self.reward != "final" or self.over else 0.0

    @property
    def ticket(self):
        return (self.env, self.episode, self.step)

    @property
    def ends(self):
        return self.over and not self.truncate, self.over and self.truncate


def frame(env: int, episode: int, step: int) -> np.ndarray:
    """The picture of one step."""
    painter = PaintedEnv(env=env)
    painter.episode, painter.elapsed = episode, step
    return painter.render()


class Sleeper(PaintedEnv):
    """Each step and each reset but the first takes 30 s."""

    def step(self, action):
        if self.elapsed:
            time.sleep(30)
        return super().step(action)

    def reset(self, **options):
        if self.episode >= 0:
            time.sleep(30)
        return super().reset(**options)


def noop(env):
    """One action for each environment of a vector."""
    return np.zeros(env.num_envs, np.int64)


def check_a_death(env, processes, call):
    """Worker 1 is killed while the call waits: an error at once, nobody is left, and the wrapper is closed."""
    pids = [process.pid for process in processes]
    threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL)).start()
    start = time.monotonic()
    message = "these env workers have died: 1 (exit code -9); the others were stopped, make a new vector environment"
    with pytest.raises(VLPError, match=f"^{re.escape(message)}$"):
        call()
    assert time.monotonic() - start < 5.0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(ClosedEnvironmentError, match=r"^step was called after close$"):
        env.step(noop(env))


def spans_episodes(windows) -> bool:
    """Whether frames of two episodes, or of two environments, are in one window of a `PaintedModel`."""
    return any(len({int(value * (1 << 24)) >> 10 for value in window}) > 1 for window in windows)


def belongings() -> tuple:
    """What must be again as it was, when all is closed: files in memory, child processes, open files."""
    gc.collect()
    files = sorted(name for name in os.listdir("/dev/shm") if name.startswith("vlp_gym-"))
    process = psutil.Process()
    return files, len(process.children(recursive=True)), process.num_fds()
