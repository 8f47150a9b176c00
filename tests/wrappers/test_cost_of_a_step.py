"""What a step costs in Python: calls of this package's own functions, polls of the engine, copies of the frame."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import vlp_gym
from vlp_gym import VLPRewardWrapper
from vlp_gym.engine.tickets import Request
from vlp_gym.testing import PaintedEnv, PaintedModel

HOME = Path(vlp_gym.__file__).parent
STEPS = 100
FIRST = 50


class Counting:
    """Counts the calls of the package's functions in this thread, models and test environments apart."""

    def __enter__(self):
        self.calls = Counter()
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def note(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(HOME):
            room, *_ = path.relative_to(HOME).parts
            if room not in ("models", "testing"):
                self.calls[path.name, frame.f_code.co_name] += 1

    @property
    def a_step(self):
        return sum(self.calls.values()) / STEPS


class Box(PaintedEnv):
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)


def test_a_sync_step():
    env = VLPRewardWrapper(PaintedEnv((1000,)), "press the button", PaintedModel())
    env.reset(seed=0)
    env.step(0)
    with Counting() as counting:
        for _ in range(STEPS):
            env.step(0)
    assert counting.a_step <= 90
    assert counting.calls["engine.py", "poll"] == STEPS
    env.close()


def test_an_async_step_of_stable_baselines3():
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import BaseCallback

    counting = Counting()

    class Window(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == FIRST:
                counting.__enter__()
            elif self.num_timesteps == FIRST + STEPS:
                counting.__exit__()
            return True

    env = VLPRewardWrapper(Box((1000,)), "press the button", PaintedModel(), mode="async")
    buffer = vlp_gym.VLPReplayBuffer
    agent = sb3.SAC("MlpPolicy", env, replay_buffer_class=buffer, learning_starts=10_000, buffer_size=1000)
    agent.replay_buffer.run_ahead = 1.0  # where a step waits for the model, it polls more often
    agent.learn(FIRST + STEPS + 10, callback=[vlp_gym.VLPRewardCallback(), Window()])
    assert counting.a_step <= 100
    assert counting.calls["engine.py", "poll"] <= 1.05 * STEPS  # now and then a step ends between two polls
    assert counting.calls["buffers.py", "announce"] == 2 * STEPS  # the second returns at once
    assert counting.calls["ledger.py", "announce"] == STEPS
    env.close()


def test_a_frame_is_copied_once(monkeypatch):
    """The engine's own copy: what reaches it is the array that ``render`` returned."""
    given, owned = [], []
    frame = np.zeros((8, 8, 3), np.uint8)

    def camera(env):
        given.append(frame)
        return frame

    def keep(self, *args, **kwargs):
        made(self, *args, **kwargs)
        owned.append(self.frames)

    made = Request.__init__
    monkeypatch.setattr(Request, "__init__", keep)
    env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel(), render_fn=camera)
    copies = Counter()
    monkeypatch.setattr(np, "copyto", lambda *_, **__: copies.update(["copyto"]))
    env.reset(seed=0)
    env.step(0)
    assert len(given) == len(owned) == 2
    assert not any(np.shares_memory(frame, own) for own in owned)
    assert not copies
    env.close()
