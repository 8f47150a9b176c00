"""Segments of episodes, which are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_ARRAYS = ("states", "actions", "mask", "rewards", "values")


class Span(NamedTuple):
    """Steps ``start`` to ``stop`` - 1 of an episode, counted from 0."""

    episode: int
    start: int
    stop: int


@dataclass(eq=False)
class EpisodeRecord:
    """One episode of S steps; a step's score, tokens and frame may come later than the step, or never."""

    number: int
    states: list[NDArray[np.float32]] = field(default_factory=list)
    """Before each step."""
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """The environment's own: for scripted teachers and for evaluation."""
    values: list[float] = field(default_factory=list)
    """What a judge says of the state after each step: for evaluation; NaN where there is none."""
    scores: dict[int, float] = field(default_factory=dict)
    """Number of steps before a frame (0: the reset frame) to what the reward model pays for it."""
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """The same for frame tokens, ``[C, K, D]``."""
    frames: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """The same for frames, ``[H, W, 3]``."""


@dataclass(frozen=True, eq=False)
class Segments:
    """N segments of at most L steps; shorter ones are padded with zeros at the end.

    Attributes:
        states: float32 ``[N, L, S]``.
        actions: float32 ``[N, L, A]``.
        mask: bool ``[N, L]``, True where a step is real.
        rewards: float32 ``[N, L]``, the environment's own: for scripted teachers and evaluation only.
        spans: the steps of each segment, N of them.
        episodes: the episode of each segment, N of them; None if only the arrays are known.
        values: float32 ``[N, L]``, what a judge says of the state after each step, for evaluation only; NaN, the
            default, where there is none.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    mask: NDArray[np.bool_]
    rewards: NDArray[np.float32]
    spans: tuple[Span, ...]
    episodes: tuple[EpisodeRecord | None, ...]
    values: NDArray[np.float32] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.values is None:
            object.__setattr__(self, "values", np.full_like(self.rewards, np.nan))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, rows: NDArray[Any] | Sequence[int] | slice) -> Segments:
        """A selection, by a slice, a mask or row numbers."""
        numbers = np.arange(len(self))[rows]
        spans, episodes = (tuple(kept[number] for number in numbers) for kept in (self.spans, self.episodes))
        arrays: dict[str, Any] = {name: getattr(self, name)[numbers] for name in _ARRAYS}
        return Segments(**arrays, spans=spans, episodes=episodes)

    @property
    def inputs(self) -> NDArray[np.float32]:
        """States and actions, concatenated, float32 ``[N, L, S + A]``."""
        return np.concatenate([self.states, self.actions], axis=2)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Sums of the environment's own rewards, float64 ``[N]``."""
        return np.where(self.mask, self.rewards, 0.0).sum(1, dtype=np.float64)

    @property
    def mean_values(self) -> NDArray[np.float64]:
        """Means of the judge's values, float64 ``[N]``; NaN where one is missing."""
        return np.where(self.mask, self.values, 0.0).sum(1, dtype=np.float64) / self.mask.sum(1)

    @staticmethod
    def join(parts: Sequence[Segments]) -> Segments:
        """Concatenate segments of one length L."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        spans, episodes = (tuple(x for part in parts for x in getattr(part, name)) for name in ("spans", "episodes"))
        return Segments(**arrays, spans=spans, episodes=episodes)
