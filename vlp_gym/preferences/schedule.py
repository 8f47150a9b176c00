"""When is who asked about what: the schedule of preference-based reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vlp_gym.preferences.samplers import Sampler

Schedule = Literal["constant", "decaying", "increasing"]


@dataclass(frozen=True)
class Queries:
    """When is who asked about what.

    Attributes:
        budget: pairs altogether, those that are skipped too.
        session: pairs of one session, before the schedule.
        every: steps between two sessions.
        explore: steps of unsupervised exploration after the agent's ``learning_starts``; then comes the first session.
        schedule: "constant", or sessions that become smaller or larger by the share of steps that is left (B-Pref).
        sampler: which pairs; the first session is always "uniform".
        newest: episodes that pairs are taken from.
        candidates: pairs drawn for each that is chosen.
        length: steps of a segment.
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
        for name in ("budget", "session", "every", "newest", "candidates", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.explore < 0:
            raise ValueError(f"explore must be at least 0, got {self.explore}")

    def size(self, step: int, total_steps: int) -> int:
        """Pairs of a session at this step (B-Pref: the share of steps left, or its inverse)."""
        left = max(total_steps - step, 0) + 1
        factor = {"constant": 1.0, "decaying": left / (total_steps + 1), "increasing": (total_steps + 1) / left}
        return max(int(self.session * factor[self.schedule]), 1)
