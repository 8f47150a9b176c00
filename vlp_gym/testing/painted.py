"""The oracle of the tests; import it from `vlp_gym.testing`.

`PaintedEnv` paints (env, episode, step) into the pixels of each frame, and `PaintedModel` reads them back and gives
them as the score. Every reward that was lost, doubled or given to another step is then a plain mismatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from vlp_gym.models.protocol import History, Scores

PAINT_BITS = (4, 10, 10)
"""Bits of env, episode and step: 24 together, which a float32 holds exactly."""


def painted_value(env: int, episode: int, step: int) -> float:
    """The score that `PaintedModel` gives to this frame of `PaintedEnv`: distinct for each, in [0, 1)."""
    code = 0
    for number, bits in zip((env, episode, step), PAINT_BITS, strict=True):
        if not 0 <= number < 1 << bits:
            raise ValueError(f"env, episode and step must be below 16, 1024 and 1024, got {(env, episode, step)}")
        code = code << bits | number
    return code / (1 << sum(PAINT_BITS))


class PaintedEnv(gym.Env[Any, Any]):
    """An environment whose every frame says which env, episode and step it is of.

    Args:
        lengths: steps of the first episodes; the last one holds for all that follow.
        env: the number that is painted as the env.
        truncate: end episodes by truncation instead of termination.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's own form)
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, lengths: Sequence[int] = (10,), *, env: int = 0, truncate: bool = False) -> None:
        self.lengths, self.env, self.truncate = lengths, env, truncate
        self.episode, self.elapsed = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        super().reset(seed=seed)
        self.episode, self.elapsed = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Count one step; the environment's own reward is -1."""
        self.elapsed += 1
        over = self.elapsed >= self.lengths[min(self.episode, len(self.lengths) - 1)]
        return np.zeros(1, np.float32), -1.0, over and not self.truncate, over and self.truncate, {}

    def render(self) -> Any:
        """A frame, uint8 ``[8, 8, 3]``, whose first pixel holds the painted value."""
        frame = np.zeros((8, 8, 3), np.uint8)
        code = int(painted_value(self.env, self.episode, self.elapsed) * (1 << 24))
        frame[0, 0] = code >> 16, code >> 8 & 255, code & 255
        return frame


class PaintedModel:
    """A `RewardModel` that reads the painted value; its preference and progress are that value.

    Args:
        window: T.
        history: "sliding" or "prefix".
        relevance: logit given to every window, or None for a model without this head.
        progress: whether there is a progress head.
    """

    frame_size = (8, 8)

    def __init__(
        self,
        window: int = 4,
        history: History = "sliding",
        relevance: float | None = None,
        *,
        progress: bool = True,
    ) -> None:
        self.window, self.history, self.relevance, self.progress = window, history, relevance, progress
        self.windows: list[list[float]] = []
        """The painted values of the real frames of each window that was scored."""
        self.encoded = 0
        """How many frames were encoded."""

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """One token of ones a sentence, ``[B, 1, 1]``."""
        return torch.ones(len(instructions), 1, 1)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The painted value as token, ``[N, 1, 1]``."""
        self.encoded += len(frames)
        return (frames[:, 0, 0].float() @ torch.tensor([65536.0, 256.0, 1.0]) / (1 << 24)).view(-1, 1, 1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The painted values of the window."""
        values = frames[:, :, 0, 0]
        self.windows += [row[real].tolist() for row, real in zip(values, mask, strict=True)]
        relevance = None if self.relevance is None else torch.full((len(frames),), self.relevance)
        return Scores(values[:, -1].clone(), values.clone() if self.progress else None, relevance)
