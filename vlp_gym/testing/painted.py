"""An exact oracle for tests; import it from `vlp_gym.testing`.

`PaintedEnv` paints (env, episode, step) into the pixels of each frame, and `PaintedModel` decodes them as the score.
Every reward that is lost, doubled or assigned to another step then shows as a mismatch.
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
"""Bits of env, episode and step: 24 together, exact in float32."""


def painted_value(env: int, episode: int, step: int) -> float:
    """The score of `PaintedModel` for this frame of `PaintedEnv`: unique, in [0, 1)."""
    code = 0
    for number, bits in zip((env, episode, step), PAINT_BITS, strict=True):
        if not 0 <= number < 1 << bits:
            raise ValueError(f"env, episode and step must be below 16, 1024 and 1024, got {(env, episode, step)}")
        code = code << bits | number
    return code / (1 << sum(PAINT_BITS))


class PaintedEnv(gym.Env[Any, Any]):
    """An environment whose frames encode their env, episode and step.

    Args:
        lengths: steps of each episode; the last one also holds for later episodes.
        env: painted number of the environment.
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
        """Start the next episode."""
        super().reset(seed=seed)
        self.episode, self.elapsed = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Count one step; the environment's reward is -1."""
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
    """A `RewardModel` whose preference and progress are the painted value.

    Args:
        window: T, frames per score.
        history: "sliding" or "prefix".
        relevance: relevance logit of every window, or None for a model without this head.
        progress: whether the model has a progress head.
    """

    frame_size = (8, 8)

    def __init__(
        self, window: int = 4, history: History = "sliding", relevance: float | None = None, *, progress: bool = True
    ) -> None:
        self.window, self.history, self.relevance, self.progress = window, history, relevance, progress
        self.windows: list[list[float]] = []
        """The painted values of the real frames of each scored window."""
        self.encoded = 0
        """Number of encoded frames."""

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """One token of value 1 per sentence, float ``[B, 1, 1]``."""
        return torch.ones(len(instructions), 1, 1)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The painted value as token, float ``[N, 1, 1]``."""
        self.encoded += len(frames)
        return (frames[:, 0, 0].float() @ torch.tensor([65536.0, 256.0, 1.0]) / (1 << 24)).view(-1, 1, 1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score by the painted values."""
        values = frames[:, :, 0, 0]
        self.windows += [row[real].tolist() for row, real in zip(values, mask, strict=True)]
        relevance = None if self.relevance is None else torch.full((len(frames),), self.relevance)
        return Scores(values[:, -1].clone(), values.clone() if self.progress else None, relevance)
