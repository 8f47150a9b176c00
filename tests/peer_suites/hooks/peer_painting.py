"""The oracle of the peer suites: every frame is painted with the number that its step must pay.

These modules are found by their own names, not as a part of `tests`: other projects' tests are a package of that name.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from vlp_gym.frames.rendering import reset_env
from vlp_gym.integrations.sb3 import VLPVecReward
from vlp_gym.models.protocol import Scores
from vlp_gym.rewards.info import ticket_in
from vlp_gym.wrappers import VLPRewardWrapper, VLPVectorRewardWrapper

SENTENCE = "press the button"
PAINTED = "painted"
"""Key in the infos: the reward that the step must pay."""


def value_of(own: Any, serial: int) -> float:
    """The environment's own reward in float32, whose last 3 bits tell 8 steps in a row apart.

    So the tests keep their sense (the change is below 1e-6 of the reward), and a reward that belongs to another step
    shows.
    """
    try:
        reward = np.float32(np.asarray(own, np.float32).flat[0])
    except (TypeError, ValueError, IndexError):
        reward = np.float32(np.nan)
    if ORACLE.exact and np.isfinite(reward):
        return float(reward)
    if not np.isfinite(reward) or abs(reward) < 2.0**-46:
        return (1 + serial % 256) * 2.0**-46
    return float(((reward.view(np.uint32) & np.uint32(0xFFFFFFF8)) | np.uint32(serial % 8)).view(np.float32))


class Oracle:
    """Counts rewards that were compared with the paint, and keeps what was wrong in the running test."""

    def __init__(self) -> None:
        self.begin()

    def begin(self, *, exact: bool = False) -> None:
        """A new test; `exact`: paint the environment's own rewards as they are."""
        self.exact = exact
        self.checked = self.unchecked = 0
        self.wrong: list[str] = []
        self.trained: list[str] = []
        """A name and a hash of the parameters after each training."""

    def compare(self, reward: float, painted: float, where: object) -> None:
        """One reward; a painted value that is NaN stands for a reward that is not the sentence's alone."""
        if math.isnan(painted):
            self.unchecked += 1
            return
        self.checked += 1
        if reward != painted:
            self.wrong.append(f"{where}: expected the reward {painted!r}, got {reward!r}")


ORACLE = Oracle()


class Painter(gym.Wrapper[Any, Any, Any, Any]):
    """Gives any environment frames, without a call of its `render`, that say what each step must pay.

    With `pays`, it pays that itself: a plain wrapper, to compare ours with.
    """

    def __init__(self, env: Any, index: int = 0, *, pays: bool = False) -> None:
        super().__init__(env)
        self.serial, self.pays, self.value = 3 * index, pays, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Paint the first frame."""
        observation, info = reset_env(self.env, seed, options)
        self._paint(0.0)
        return observation, {**info, f"{PAINTED}_reset": self.value}

    def step(self, action: Any) -> Any:
        """Paint the next frame, and say in the info what it must pay."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._paint(reward)
        reward = self.value if self.pays else reward
        return observation, reward, terminated, truncated, {**info, PAINTED: self.value}

    def _paint(self, own: Any) -> None:
        self.serial += 1
        self.value = value_of(own, self.serial)

    @staticmethod
    def camera(env: Any) -> np.ndarray:
        """The frame, for `render_fn`."""
        frame = np.zeros((8, 8, 3), np.uint8)
        frame.reshape(-1)[:4] = np.frombuffer(np.float32(env.value).tobytes(), np.uint8)
        return frame


class Model:
    """A `RewardModel` whose preference is what the newest frame says."""

    frame_size = (8, 8)
    window = 4
    history = "sliding"

    def encode_text(self, instructions: Any) -> Tensor:
        """One token for each sentence."""
        return torch.ones(len(instructions), 1, 1)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """What the frame says."""
        return frames.flatten(1)[:, :4].contiguous().view(torch.float32).view(-1, 1, 1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The newest frame's."""
        return Scores(frames[:, -1, 0, 0].clone(), None, None)


class Checked(VLPRewardWrapper):
    """The wrapper under test, whose every reward and delivery is compared."""

    def __init__(self, env: Any, mode: Any, index: int = 0) -> None:
        self.owed: dict[Any, float] = {}
        super().__init__(
            Painter(env, index),
            SENTENCE,
            Model(),
            reward="preference",
            render_fn=Painter.camera,
            mode=mode,
            untaken="wait",
        )

    def step(self, action: Any) -> Any:
        """Compare what comes at once, and remember what is owed."""
        result = super().step(action)
        reward, info = result[1], result[4]
        ticket = ticket_in(info["vlp"])
        if ticket is not None:
            self.owed[ticket] = info[PAINTED]
        if ticket is None or not self._stream.receipt.taken():  # then the step has waited for its reward
            ORACLE.compare(reward, info[PAINTED], self.ticket)
        return result

    def poll(self, timeout_s: float = 0.0) -> Any:
        """Compare what has come."""
        return self._settle(super().poll(timeout_s))

    def flush(self, timeout_s: float | None = None) -> Any:
        """Compare what has come."""
        return self._settle(super().flush(timeout_s))

    def _settle(self, deliveries: Any) -> Any:
        for delivery in deliveries:
            ORACLE.compare(delivery.reward, self.owed.pop(delivery.ticket), delivery.ticket)
        return deliveries


class CheckedVec(VLPVecReward):
    """The wrapper of Stable-Baselines3's vectors under test."""

    def __init__(self, venv: Any, mode: Any) -> None:
        super().__init__(venv, SENTENCE, Model(), reward="preference", mode=mode, untaken="wait")

    def step_wait(self) -> Any:
        """Compare what comes at once; the buffers are compared where it comes late."""
        result = super().step_wait()
        for reward, info in zip(result[1], result[3], strict=True):
            if ticket_in(info["vlp"]) is None:
                ORACLE.compare(reward, info[PAINTED], "VLPVecReward")
        return result


class CheckedVector(VLPVectorRewardWrapper):
    """The wrapper of Gymnasium's vectors under test."""

    def __init__(self, env: Any) -> None:
        super().__init__(env, SENTENCE, Model(), reward="preference")

    def step(self, actions: Any) -> Any:
        """Compare every transition; what is reset in the same step has its info in `final_info`."""
        result = super().step(actions)
        infos = result[4]
        for where in (infos, infos.get("final_info", {})):
            for index in np.flatnonzero(where.get(f"_{PAINTED}", [])):
                ORACLE.compare(float(result[1][index]), float(where[PAINTED][index]), f"env {index}")
        return result
