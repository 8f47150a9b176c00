"""Tickets, their scores and answers, and the episodes and requests that the engine keeps for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.token_cache import TokenCache


class Ticket(NamedTuple):
    """Names one transition for ever: the step that led to a frame; step 0 is the reset frame."""

    env: int
    episode: int
    step: int

    def __str__(self) -> str:
        return f"env {self.env}, episode {self.episode}, step {self.step}"


class FrameScore(NamedTuple):
    """What the model gives the newest frame of an episode.

    Attributes:
        preference: f(v | l), any finite number.
        progress: in [0, 1], or in the model's `value_range`; None if the model has no such head.
        relevance: logit that the video shows the instructed task, or None.
    """

    preference: float
    progress: float | None
    relevance: float | None


UNSCORED = FrameScore(0.0, None, None)
"""The score of a frame that nobody asked the score of."""


class Answer(NamedTuple):
    """The answer to one ticket: a score, or the error that came in its place."""

    ticket: Ticket
    score: FrameScore | None
    error: Exception | None = None


@dataclass(eq=False)
class Episode:
    """One episode of one environment; late answers of an episode may come when the next one runs already."""

    number: int
    text: Tensor
    caches: list[TokenCache] = field(default_factory=list)
    """One for each view (camera)."""
    step: int = -1
    """Of the newest ticket that was submitted."""
    broken: bool = False
    """A frame is missing from the caches: no window can be trusted."""


@dataclass(eq=False)
class Request:
    """One ticket on its way to the model."""

    ticket: Ticket
    frames: NDArray[np.uint8]
    """``[C, H, W, 3]``, the engine's own copy."""
    episode: Episode
    since_s: float
    """When it was submitted, on the monotonic clock."""
    scored: bool = True
    """False: the frame is encoded and kept for later windows, and the answer is `UNSCORED`."""
