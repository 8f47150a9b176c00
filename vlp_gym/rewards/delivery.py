"""Late rewards on their way to whoever takes them, and whether anybody does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex

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

    signed: bool = False
    """Since the newest step or reset, somebody has read an info's deliveries: the next step need not wait."""
    polled: bool = False
    """Since the newest call of ``reset``, somebody has polled."""
    always: bool = False
    """No other sign is needed, see `Streaming.take_late_rewards`."""
    waited: int = 0
    """Steps in a row for which nobody took rewards."""

    def restart(self) -> None:
        """Somebody calls the wrapper's ``reset``: it may not be who has taken the rewards before."""
        self.waited *= not self.signed
        self.polled = self.signed = False

    def used(self) -> bool:
        """Whether the step being made may be late; asked once a step."""
        taken = self.always or self.polled or self.signed
        self.signed = False
        self.waited = 0 if taken else self.waited + 1
        return taken


class Deliveries(list[Delivery]):
    """The late rewards in an info. Reading them signs the receipt: the next step need not wait for its reward.

    Copying and pickling do not: vector environments do both to every info.

    Args:
        deliveries: oldest first.
        receipt: what reading signs.
    """

    def __init__(self, deliveries: Iterable[Delivery] = (), receipt: Receipt | None = None) -> None:
        super().__init__(deliveries)
        self.receipt = receipt or Receipt()

    def __iter__(self) -> Iterator[Delivery]:
        self.receipt.signed = True
        return super().__iter__()

    def __len__(self) -> int:
        self.receipt.signed = True
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        self.receipt.signed = True
        return super().__getitem__(index)

    def __deepcopy__(self, memo: dict[int, Any]) -> Deliveries:
        return Deliveries(super().__iter__(), self.receipt)

    def __copy__(self) -> Deliveries:
        return Deliveries(super().__iter__(), self.receipt)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return list, (list(super().__iter__()),)
