"""The oracle of the tests, and environments and models that go wrong on purpose; take them from `vlp_gym.testing`.

`PaintedEnv` paints (env, episode, step) into the pixels of each frame, and `PaintedModel` reads them back and gives
them as the score. Every reward that was lost, doubled or given to another step is then a plain mismatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from vlp_gym.models.base import History, Scores

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


FRAME_FAULTS: dict[str, Callable[[np.ndarray], Any]] = {
    "none": lambda frame: None,
    "list": lambda frame: frame.tolist(),
    "float": lambda frame: (frame / 255).astype(np.float32),
    "int64": lambda frame: frame.astype(np.int64),
    "bool": lambda frame: frame > 0,
    "object": lambda frame: frame.astype(object),
    "chw": lambda frame: frame.transpose(2, 0, 1),
    "rgba": lambda frame: np.concatenate([frame, frame[..., :1]], axis=2),
    "grey": lambda frame: frame[..., 0],
    "empty": lambda frame: frame[:0],
    "huge": lambda frame: np.broadcast_to(frame[:1, :1], (8193, 8192, 3)),
    "resized": lambda frame: np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1),
    "negative_strides": lambda frame: frame[::-1, ::-1].copy()[::-1, ::-1],
}
"""What `FaultyEnv` can make of a frame; the last two are correct frames, of another size or layout."""


class FaultyEnv(PaintedEnv):
    """A `PaintedEnv` with one fault, in its first episode only.

    Args:
        fault: a name of `FRAME_FAULTS`, or "reset_raises", "step_raises", "render_raises", "reward_nan",
            "reward_none", "both_ends" (terminates and truncates at once), "reused_buffer" (all frames are one array).
        at: the step of the fault; 0 is the reset.
        lengths: steps of the episodes.
    """

    def __init__(self, fault: str, at: int = 2, lengths: Sequence[int] = (10,)) -> None:
        super().__init__(lengths)
        self.fault, self.at = fault, at
        self._buffer = np.zeros((8, 8, 3), np.uint8)

    def _now(self, fault: str) -> bool:
        return fault == self.fault and (self.episode, self.elapsed) == (0, self.at)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        answer = super().reset(seed=seed, options=options)
        if self._now("reset_raises"):
            raise OSError("the simulator is gone")
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Count one step."""
        observation, reward, terminated, truncated, info = super().step(action)
        if self._now("step_raises"):
            raise OSError("the simulator is gone")
        if self._now("reward_nan") or self._now("reward_none"):
            reward = float("nan") if self.fault == "reward_nan" else None
        ends = self._now("both_ends")
        return observation, reward, terminated or ends, truncated or ends, info

    def render(self) -> Any:
        """The painted frame, or what the fault makes of it."""
        if self._now("render_raises"):
            raise OSError("no GL context")
        frame = super().render()
        if self.fault == "reused_buffer":
            self._buffer[:] = frame
            return self._buffer
        return FRAME_FAULTS[self.fault](frame) if self.fault in FRAME_FAULTS and self._now(self.fault) else frame


MODEL_FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "nan": lambda values: Scores(values[:, -1] * float("nan"), values),
    "nan_progress": lambda values: Scores(values[:, -1], values * float("nan")),
    "inf": lambda values: Scores(values[:, -1] + float("inf"), values),
    "no_scores": lambda values: values,
    "no_tensor": lambda values: Scores(0.5, values),  # type: ignore[arg-type]
    "wrong_shape": lambda values: Scores(values[:, -1:], values),
    "wrong_device": lambda values: Scores(values[:, -1].to("meta"), values),
    "wrong_dtype": lambda values: Scores(values[:, -1].long(), values),
    "gradient": lambda values: Scores(_with_gradient(len(values)), values),
}
"""What `FaultyModel` can make of the painted values ``[B, T]``."""


class FaultyModel(nn.Module):
    """A `PaintedModel` with one fault.

    Args:
        fault: a name of `MODEL_FAULTS`, or "raises", "out_of_memory" (with more than `limit` rows), "mutates" (every
            input, always), "train_mode" (starts in train mode, in which it adds noise).
        at: the call of `score` that goes wrong, from 0 on; `VLPRewardWrapper` makes call 0 when it is made, and
            the reset frame is call 1.
        limit: rows that fit in the memory, for "out_of_memory".
    """

    frame_size = (8, 8)

    def __init__(self, fault: str, at: int = 3, *, limit: int = 2) -> None:
        super().__init__()
        self.fault, self.at, self.limit, self.calls = fault, at, limit, 0
        self.painted = PaintedModel()
        self.window, self.history = self.painted.window, self.painted.history
        self.batches: list[int] = []
        """Rows of each call of `score` and `encode_frames`, the failed ones too."""
        self.train(fault == "train_mode")

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """One token of ones a sentence, ``[B, 1, 1]``."""
        return self.painted.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The painted value as token, ``[N, 1, 1]``."""
        self._allocate(len(frames))
        tokens = self.painted.encode_frames(frames)
        if self.fault == "mutates":
            frames.zero_()
        return tokens

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The painted values of the window, or what the fault makes of them."""
        self._allocate(len(frames))
        now, self.calls = self.calls == self.at, self.calls + 1
        if now and self.fault == "raises":
            raise ZeroDivisionError("division by zero")
        if now and self.fault in MODEL_FAULTS:
            broken: Scores = MODEL_FAULTS[self.fault](frames[:, :, 0, 0])
            return broken
        scores = self.painted.score(frames, text, mask)
        if self.training:
            scores = Scores(scores.preference + torch.rand(()), scores.progress)
        if self.fault == "mutates":
            for tensor in (frames, text, mask):
                tensor.zero_()
        return scores

    def _allocate(self, rows: int) -> None:
        self.batches.append(rows)
        if self.fault == "out_of_memory" and rows > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _with_gradient(rows: int) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        return torch.zeros(rows, requires_grad=True) * 2
