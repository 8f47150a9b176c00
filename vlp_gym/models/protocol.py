"""The interface of a reward model: encode text once, encode each frame once, score windows of frame tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

History = Literal["sliding", "prefix", "prefix-floor"]


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of windows.

    Attributes:
        preference: float ``[B]``; higher is better, compared by Bradley-Terry. A model that scores single frames gives
            the mean over the real frames.
        progress: float ``[B, T]``, one value per frame, or None: task progress in [0, 1], or a model-specific value
            (a cosine, a negative distance) in the model's `value_range`.
        relevance: float ``[B]``, logit that the sentence belongs to the video, or None; gates the reward.
    """

    preference: Tensor
    progress: Tensor | None = None
    relevance: Tensor | None = None


@runtime_checkable
class RewardModel(Protocol):
    """Structural type of every model that the wrapper, the engine and the metrics accept.

    Attributes:
        window: T, frames per score.
        history: "sliding" (the last T frames), "prefix" (T frames spread over the episode so far) or "prefix-floor"
            (the same, but each place rounded down, as in the published code of ReWiND).
        frame_size: (H, W) in pixels, to which the model resizes frames on its own device.
    """

    window: int
    history: History

    @property
    def frame_size(self) -> tuple[int, int]:
        """See the class; an attribute will do."""
        ...

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as tokens, float ``[B, L, D]``; padding rows are exactly zero."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as tokens, float ``[N, K, D]``."""
        ...

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows.

        Args:
            frames: frame tokens, float ``[B, T, K, D]``, with any T >= 1.
            text: text tokens, float ``[B, L, D]``.
            mask: bool ``[B, T]``, True where the frame is real; at least one True per row. Real frames come last:
                padding repeats the first frame at the front.
        """
        ...


@runtime_checkable
class ContextualModel(RewardModel, Protocol):
    """A model that encodes each frame together with the first frame of its window.

    With history "prefix" that is the episode's first frame, so this encoding, too, is done once per frame:
    ``score(frames, text, mask) == score_in_context(encode_in_context(frames, first), text, mask)``.
    """

    def encode_in_context(self, frames: Tensor, first: Tensor) -> Tensor:
        """Encode frame tokens and first-frame tokens, both float ``[N, K, D]``, as float ``[N, K', D']``."""
        ...

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows, as `RewardModel.score`; frames come from `encode_in_context`, float ``[B, T, K', D']``."""
        ...


@runtime_checkable
class PairwiseModel(RewardModel, Protocol):
    """A model with a head that compares two videos; P(a > b) + P(b > a) need not be 1."""

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float ``[B]`` in [0, 1].

        Args:
            a: frame tokens of the first videos, float ``[B, T, K, D]``.
            b: frame tokens of the second videos, float ``[B, T', K, D]``.
            text: text tokens, float ``[B, L, D]``.
        """
        ...


@runtime_checkable
class AnchoredModel(RewardModel, Protocol):
    """A model that compares every frame with the first of its window, even if the mask is False there.

    To score a segment, put the episode's first frame in front of it, masked out.
    """

    anchored: bool


@runtime_checkable
class KnowingModel(RewardModel, Protocol):
    """A model that says how far a picture is from those that it was trained on."""

    def novelty(self, frames: Tensor) -> Tensor:
        """Distance of N frames, tokens ``[N, K, D]``, from the training data, float ``[N]``; above `NOVEL` is far.

        It is 1 on average over the training data, and NaN for a model without training.
        """
        ...


NOVEL = 2.5


@runtime_checkable
class RangedModel(RewardModel, Protocol):
    """A model whose progress has another range than [0, 1]."""

    value_range: tuple[float, float]


@runtime_checkable
class GoalModel(RewardModel, Protocol):
    """A model that accepts a goal picture in place of a sentence."""

    needs_goal: bool
    """True if it accepts only pictures."""

    def encode_goals(self, frames: Tensor) -> Tensor:
        """Encode N goal pictures, uint8 ``[N, H, W, 3]`` of any size, as text tokens, float ``[N, L, D]``."""
        ...


@runtime_checkable
class AttendingModel(RewardModel, Protocol):
    """A model whose sentence attends to places in the frames."""

    def attention_maps(self, frames: Tensor, text: Tensor, mask: Tensor, words: Tensor | None = None) -> Tensor:
        """Attention within each frame, float ``[B, T, h, w]``, each frame's of sum 1; arguments as in `score`.

        Args:
            frames: see `score`.
            text: see there.
            mask: see there.
            words: bool ``[B, L]``, the text tokens to average over; None takes all of them.
        """
        ...

    def word_tokens(self, instruction: str) -> list[list[int]]:
        """The text tokens of each word, words being what blanks divide; empty where tokens are not words."""
        ...


@runtime_checkable
class PixelModel(RewardModel, Protocol):
    """A model with a trainable encoder: it also encodes augmented float pictures."""

    def encode_pixels(self, pictures: Tensor) -> Tensor:
        """Encode float pictures ``[..., 3, H, W]`` in [0, 1] at `frame_size` as frame tokens ``[..., K, D]``."""
        ...


@runtime_checkable
class Truncating(Protocol):
    """A model, or a part of one, that can truncate an instruction over its token limit."""

    truncate: bool


def value_range(model: RewardModel) -> tuple[float, float]:
    """Lowest and highest progress of a model; (0, 1) unless it is a `RangedModel`."""
    low, high = model.value_range if isinstance(model, RangedModel) else (0.0, 1.0)
    return float(low), float(high)


def frame_scores(values: Tensor, mask: Tensor) -> Scores:
    """Frame values, float ``[B, T]``, as progress, and their mean where the mask ``[B, T]`` is True as preference."""
    real = mask.to(values.dtype)
    return Scores(preference=(values * real).sum(1) / real.sum(1), progress=values)
