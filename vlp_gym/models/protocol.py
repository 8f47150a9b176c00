"""What a reward model is: encode text once, encode each frame once, score windows of frame tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

History = Literal["sliding", "prefix"]


@dataclass(frozen=True)
class Scores:
    """What a reward model says of a batch of windows.

    Attributes:
        preference: float ``[B]``; higher is better, compared by Bradley-Terry. A model that judges frame by frame gives
            the mean of its values over the real frames.
        progress: float ``[B, T]``, one value a frame, or None if the model has none: how far the task is, in [0, 1], or
            what the model's own formula pays a frame (a cosine, minus a distance), in its `value_range`.
        relevance: float ``[B]``, the logit that the sentence belongs to the video, or None; gates the reward.
    """

    preference: Tensor
    progress: Tensor | None = None
    relevance: Tensor | None = None


@runtime_checkable
class RewardModel(Protocol):
    """Structural type of every model that the wrapper, the engine and the metrics take.

    Attributes:
        window: T, the number of frames that one score looks at.
        history: "sliding" (the last T frames) or "prefix" (T frames spread over the episode so far).
        frame_size: (H, W) in pixels after the resize that the model does on its own device.
    """

    window: int
    history: History
    frame_size: tuple[int, int]

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as tokens, float ``[B, L, D]``; rows of padding are exactly zero."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as tokens, float ``[N, K, D]``."""
        ...

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows.

        Args:
            frames: frame tokens, float ``[B, T, K, D]``; T may be any number from 1 on.
            text: text tokens, float ``[B, L, D]``.
            mask: bool ``[B, T]``, True where the frame is real; at least one True a row, and the real
                frames come last (padding repeats the first frame at the front).
        """
        ...


@runtime_checkable
class ContextualModel(RewardModel, Protocol):
    """A model that looks at each frame beside the first one of its window, and scores windows of what it saw there.

    With the history "prefix" that first frame is the episode's own, so that this, too, is done once a frame:
    ``score(frames, text, mask) == score_in_context(encode_in_context(frames, first), text, mask)``.
    """

    def encode_in_context(self, frames: Tensor, first: Tensor) -> Tensor:
        """Frame tokens ``[N, K, D]`` beside those of the first frame ``[N, K, D]``, as ``[N, K', D']``."""
        ...

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """As `RewardModel.score`, for what `encode_in_context` gave, ``[B, T, K', D']``."""
        ...


@runtime_checkable
class PairwiseModel(RewardModel, Protocol):
    """A model with a head that compares two videos; it need not be symmetric."""

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float ``[B]`` in [0, 1].

        Args:
            a: frame tokens of the first videos, ``[B, T, K, D]``.
            b: frame tokens of the second videos, ``[B, T', K, D]``.
            text: text tokens, ``[B, L, D]``.
        """
        ...


@runtime_checkable
class AnchoredModel(RewardModel, Protocol):
    """A model that measures every frame against the first one of its window, even where the mask is False there.

    Who scores a segment puts the episode's first frame in front of it, masked out.
    """

    anchored: bool


@runtime_checkable
class RangedModel(RewardModel, Protocol):
    """A model whose progress lies in another range than [0, 1]."""

    value_range: tuple[float, float]


@runtime_checkable
class GoalModel(RewardModel, Protocol):
    """A model that takes the picture of a goal where others take a sentence."""

    needs_goal: bool
    """It takes pictures only, no sentences."""

    def encode_goals(self, frames: Tensor) -> Tensor:
        """Pictures of N goals, uint8 ``[N, H, W, 3]`` of any size, as text tokens, float ``[N, L, D]``."""
        ...


@runtime_checkable
class PixelModel(RewardModel, Protocol):
    """A model whose encoder can be trained: it takes float pictures, which augmentation makes."""

    def encode_pixels(self, pictures: Tensor) -> Tensor:
        """Pictures, float ``[..., 3, H, W]`` in [0, 1] at `frame_size`, as frame tokens ``[..., K, D]``."""
        ...


@runtime_checkable
class Truncating(Protocol):
    """A model, or a part of one, that can cut an instruction which is over its token limit."""

    truncate: bool


def value_range(model: RewardModel) -> tuple[float, float]:
    """Lowest and highest progress of a model; (0, 1) unless it is a `RangedModel`."""
    low, high = model.value_range if isinstance(model, RangedModel) else (0.0, 1.0)
    return float(low), float(high)


def frame_scores(values: Tensor, mask: Tensor) -> Scores:
    """Scores of a model that has nothing but a value for each frame.

    Args:
        values: float ``[B, T]``.
        mask: bool ``[B, T]``, True where the frame is real.

    Returns:
        The values as progress, and their mean over the real frames as preference.
    """
    real = mask.to(values.dtype)
    return Scores(preference=(values * real).sum(1) / real.sum(1), progress=values)
