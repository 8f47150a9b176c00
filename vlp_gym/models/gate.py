"""Which of a cheap model's answers are checked by a dear one: those nearest to 0.5, within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

OPTIONS = {"band": float, "share": float, "budget": int}


@dataclass
class Gate:
    """Chooses the uncertain ones of P(first > second), and counts them (ROVED, Ghosh et al., 2026, arXiv:2603.28053).

    ROVED sends a part of the pairs between two thresholds to the oracle; here the thresholds are 0.5 - band and
    0.5 + band, and of those between them the least certain ones are sent.

    Attributes:
        band: greatest distance from 0.5 of a pair that is sent, in (0, 0.5].
        share: at most this share of the pairs of one call is sent, in (0, 1]; 0.2 of 40 pairs are 8.
        budget: at most so many pairs in all; None: no limit.
        asked: pairs so far.
        sent: those of them that were sent.

    Example:
        >>> gate = Gate(band=0.3, budget=2)
        >>> gate.choose(np.array([0.9, 0.45, 0.6, 0.7, 0.51])).tolist(), gate.sent, gate.asked
        ([1, 4], 2, 5)
    """

    band: float = 0.25
    share: float = 1.0
    budget: int | None = None
    asked: int = 0
    sent: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.band <= 0.5:
            raise ValueError(f"band must be in (0, 0.5], got {self.band}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if self.budget is not None and self.budget < 0:
            raise ValueError(f"budget must be at least 0, or None, got {self.budget}")

    def choose(self, probability: NDArray[Any]) -> NDArray[np.int64]:
        """The rows to send, ascending, int64; they are counted as sent.

        Args:
            probability: P(first > second), ``[N]``; NaN, a pair that was left undecided, is the least certain.
        """
        return self.nearest(probability, self.room(len(probability)))

    def room(self, count: int) -> int:
        """How many of `count` new pairs may be sent; they are counted as asked."""
        self.asked += count
        most = round(self.share * count)
        return most if self.budget is None else min(most, max(self.budget - self.sent, 0))

    def nearest(self, probability: NDArray[Any], most: int) -> NDArray[np.int64]:
        """As `choose`, at most so many of pairs that were counted as asked before."""
        distance = np.nan_to_num(np.abs(np.asarray(probability, np.float64) - 0.5), nan=0.0)
        rows = np.argsort(distance, kind="stable")[:most]
        rows = np.sort(rows[distance[rows] <= self.band])
        self.sent += len(rows)
        return rows

    def __str__(self) -> str:
        of = "" if self.budget is None else f", of a budget of {self.budget}"
        return f"{self.sent} of {self.asked} pairs ({self.sent / max(self.asked, 1):.0%}) were sent on{of}"


@runtime_checkable
class Gated(Protocol):
    """A model or labeler that sends uncertain pairs on."""

    gate: Gate


def read_cascade(spec: str) -> tuple[str, str, Gate]:
    """Read "SMALL|LARGE", with "|band=0.25", "|share=0.2" and "|budget=500" behind it.

    >>> read_cascade("vlp-compact|human|budget=50")
    ('vlp-compact', 'human', Gate(band=0.25, share=1.0, budget=50, asked=0, sent=0))

    Raises:
        ValueError: it is nothing like that.
    """
    parts = spec.split("|")
    options: dict[str, Any] = {}
    for part in parts[2:]:
        name, _, value = part.partition("=")
        try:
            options[name] = OPTIONS[name](value)
        except (KeyError, ValueError):
            parts = []
    if len(parts) < 2 or not all(parts):
        raise ValueError(
            f'expected "cascade:SMALL|LARGE", and behind it "|band=0.25", "|share=0.2" or "|budget=500", got '
            f"{'cascade:' + spec!r}; a part whose own name has a | is named as a folder"
        )
    return parts[0], parts[1], Gate(**options)
