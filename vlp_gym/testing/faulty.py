"""Deliberately faulty environments and models; import them from `vlp_gym.testing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlp_gym.models.protocol import Scores
from vlp_gym.testing.painted import PaintedEnv, PaintedModel

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
"""Faults of a frame in `FaultyEnv`; the last two are valid frames of another size or memory layout."""


class FaultyEnv(PaintedEnv):
    """A `PaintedEnv` with one fault, only in its first episode.

    Args:
        fault: a key of `FRAME_FAULTS`, or "reset_raises", "step_raises", "render_raises", "reward_nan",
            "reward_none", "both_ends" (terminates and truncates at once), "reused_buffer" (all frames are one array).
        at: step of the fault; 0 is the reset.
        lengths: steps per episode, see `PaintedEnv`.
    """

    def __init__(self, fault: str, at: int = 2, lengths: Sequence[int] = (10,)) -> None:
        super().__init__(lengths)
        self.fault, self.at = fault, at
        self._buffer = np.zeros((8, 8, 3), np.uint8)

    def _now(self, fault: str) -> bool:
        return fault == self.fault and (self.episode, self.elapsed) == (0, self.at)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode."""
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
        """The painted frame, with the fault."""
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
"""Faults of the scores in `FaultyModel`, as functions of the painted values ``[B, T]``."""


class FaultyModel(nn.Module):
    """A `PaintedModel` with one fault.

    Args:
        fault: a key of `MODEL_FAULTS`, or "raises", "out_of_memory" (with more than `limit` rows), "mutates" (every
            input, always), "train_mode" (starts in train mode, in which it adds noise).
        at: index of the faulty call of `score`; the constructor of `VLPRewardWrapper` makes call 0, the reset frame
            call 1.
        limit: rows that fit into memory, for "out_of_memory".
    """

    frame_size = (8, 8)

    def __init__(self, fault: str, at: int = 3, *, limit: int = 2) -> None:
        super().__init__()
        self.fault, self.at, self.limit, self.calls = fault, at, limit, 0
        self.painted = PaintedModel()
        self.window, self.history = self.painted.window, self.painted.history
        self.batches: list[int] = []
        """Rows of each call of `score` and `encode_frames`, failed ones included."""
        self.train(fault == "train_mode")

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """One token of value 1 per sentence, float ``[B, 1, 1]``."""
        return self.painted.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The painted value as token, float ``[N, 1, 1]``."""
        self._allocate(len(frames))
        tokens = self.painted.encode_frames(frames)
        if self.fault == "mutates":
            frames.zero_()
        return tokens

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score by the painted values, with the fault."""
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
