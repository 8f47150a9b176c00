"""Late rewards on their way to whoever takes them, and whether anybody does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlp_gym.engine.tickets import Ticket


class _Delivery(NamedTuple):
    ticket: Ticket
    reward: float
    score: float
    progress: float | None
    relevance: float | None
    success: bool


class Delivery(_Delivery):
    """The reward of one transition, and what it was made of; numbers only."""

    __slots__ = ()

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Delivery:  # type: ignore[override]  # of this class, not of a type variable
        """As `Ticket` has it: made anew of tensors, the numbers stay Python's."""
        ticket, reward, score, *heads, success = values
        progress, relevance = (None if head is None else float(head) for head in heads)
        return cls(ticket, float(reward), float(score), progress, relevance, bool(success))


@dataclass
class Receipt:
    """Whether somebody takes the late rewards of a stream."""

    polled: bool = False
    """Since the newest call of ``reset``, somebody has polled."""
    always: bool = False
    """No other sign is needed, see `Streaming.take_late_rewards`."""
    known: bool = False
    """Somebody has polled, or has said whether late rewards are taken, at any time."""
    waited: int = 0
    """Steps in a row for which nobody took rewards."""

    def poll(self) -> None:
        """Somebody polls."""
        self.polled = self.known = True

    def say(self, *, always: bool) -> None:
        """Somebody says whether late rewards are taken from now on."""
        self.known, self.always = True, always
        self.polled &= always

    def restart(self) -> None:
        """Somebody calls the wrapper's ``reset``: it may not be who has taken the rewards before."""
        self.polled = False

    def taken(self) -> bool:
        """Whether the next step may be late."""
        return self.always or self.polled

    def used(self) -> bool:
        """The same for the step being made, asked once a step."""
        self.waited = 0 if self.taken() else self.waited + 1
        return self.waited == 0
