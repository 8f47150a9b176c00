"""Tickets, their scores and answers, and the engine's episodes and requests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.token_cache import TokenCache

_numbers = itertools.count()


def next_env() -> int:
    """A number for one more environment: no other of this process has it, whichever engine it belongs to."""
    return next(_numbers)


class _Ticket(NamedTuple):
    env: int
    episode: int
    step: int


class Ticket(_Ticket):
    """Identifier of one transition, unique in its process, by the step that led to its frame; step 0 is the reset."""

    __slots__ = ()

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Ticket:  # type: ignore[override]  # of this class, not of a type variable
        """Gymnasium's `NumpyToTorch` and its kin make infos anew, of tensors: a ticket stays one of whole numbers."""
        return cls(*map(int, values))

    def __str__(self) -> str:
        return f"env {self.env}, episode {self.episode}, step {self.step}"


class FrameScore(NamedTuple):
    """The model's score of the newest frame of an episode.

    Attributes:
        preference: f(v | l), any finite number.
        progress: in [0, 1], or in the model's `value_range`; None if the model has no progress head.
        relevance: logit that the video shows the instructed task, or None.
    """

    preference: float
    progress: float | None
    relevance: float | None


UNSCORED = FrameScore(0.0, None, None)
"""The placeholder score of a frame that is encoded but not scored."""


class Answer(NamedTuple):
    """The answer to one ticket: a score or an error."""

    ticket: Ticket
    score: FrameScore | None
    error: Exception | None = None


@dataclass(eq=False)
class Episode:
    """One episode of one environment; its late answers may arrive while the next episode runs."""

    number: int
    text: Tensor
    caches: list[TokenCache] = field(default_factory=list)
    """One per view (camera)."""
    step: int = -1
    """Step of the newest submitted ticket."""
    broken: bool = False
    """True if the caches lack a frame, so that no window is valid."""


@dataclass(eq=False)
class Request:
    """One ticket on its way to the model."""

    ticket: Ticket
    frames: NDArray[np.uint8]
    """uint8 ``[C, H, W, 3]``, the engine's copy."""
    episode: Episode
    since_s: float
    """Time of submission on the monotonic clock, in seconds."""
    scored: bool = True
    """If False, the frame is only encoded for later windows, and the answer is `UNSCORED`."""
