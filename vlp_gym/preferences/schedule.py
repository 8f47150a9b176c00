"""The labelling schedule: how many pairs, how often, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vlp_gym.preferences.samplers import Sampler

Schedule = Literal["constant", "decaying", "increasing"]


@dataclass(frozen=True)
class Queries:
    """The labelling schedule: how many pairs, how often, and which.

    Attributes:
        budget: pairs in all, including skipped ones.
        session: pairs in one session, before `schedule` changes them.
        every: steps between two sessions.
        explore: steps of unsupervised exploration between the agent's ``learning_starts`` and the first session.
        schedule: "constant", or sessions that shrink or grow with the share of steps left (B-Pref).
        sampler: how pairs are chosen; the first session is always "uniform".
        newest: newest episodes that pairs are taken from.
        candidates: candidate pairs drawn per pair kept.
        length: steps in a segment.

    Raises:
        ValueError: for a number below 1 (explore: below 0), or an unknown schedule or sampler.
    """

    budget: int = 1_000
    session: int = 50
    every: int = 5_000
    explore: int = 9_000
    schedule: Schedule = "constant"
    sampler: Sampler = "disagreement"
    newest: int = 100
    candidates: int = 10
    length: int = 50

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, got {self.schedule!r}")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler must be one of {get_args(Sampler)}, got {self.sampler!r}")
        for name in ("budget", "session", "every", "newest", "candidates", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.explore < 0:
            raise ValueError(f"explore must be at least 0, got {self.explore}")

    def size(self, step: int, total_steps: int) -> int:
        """Pairs in a session at this step (B-Pref: times the share of steps left, or its inverse)."""
        left = max(total_steps - step, 0) + 1
        factor = {"constant": 1.0, "decaying": left / (total_steps + 1), "increasing": (total_steps + 1) / left}
        return max(int(self.session * factor[self.schedule]), 1)
