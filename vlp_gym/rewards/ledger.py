"""Bookkeeping of late rewards: which row of a replay buffer waits for which ticket."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from vlp_gym.engine.tickets import Ticket

STEPS_OF_ITS_OWN = (
    "a wrapper outside the reward wrapper makes steps of its own, as for a frame skip, so that rewards which come late "
    'pass it by; put it inside, or use mode="sync"'
)


@dataclass(eq=False)
class _Open:
    """A ticket whose reward is outstanding, or arrived before its transition was stored."""

    row: int | None = None
    """Row of the transition; None before it is stored and after its row is overwritten."""
    stale: bool = False
    """Its row was overwritten: the reward will be dropped, and is already counted."""
    reward: float | None = None
    """A reward that arrived before the transition was stored."""


class RewardLedger:
    """Match late rewards to buffer rows by (environment index, ticket).

    Every ticket is counted once: submitted = delivered + stale + failed + cancelled + pending, always. The index is
    part of the key, because several wrappers may each call their environment 0. The rewards of one environment arrive
    in step order, so a skipped one will never arrive: its transition has failed, and its row stays closed until it is
    overwritten.

    Args:
        num_envs: number of environments, the buffer's columns.
    """

    def __init__(self, num_envs: int) -> None:
        self._between_runs = [True] * num_envs
        self._open: list[dict[Ticket, _Open]] = [{} for _ in range(num_envs)]  # in the order of the steps
        self._newest: list[Ticket | None] = [None] * num_envs
        self._delivered: list[Ticket | None] = [None] * num_envs
        self._counts = {"submitted": 0, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 0}
        self.missing: dict[int, dict[int, Ticket | None]] = {}
        """Closed row, which may not be sampled -> environment whose reward is missing -> its ticket, if known."""

    def stats(self) -> dict[str, int]:
        """Counts of tickets: delivered to a row; stale (row overwritten, or transition never stored); failed (no
        reward arrived); cancelled (another source of rewards was attached); pending."""
        pending = sum(not entry.stale for tickets in self._open for entry in tickets.values())
        return {**self._counts, "pending": pending}

    def waiting(self) -> list[int]:
        """Environments with a row that waits for a reward, oldest row first."""
        rows: dict[int, int] = {}
        for row, tickets in self.missing.items():
            for index, ticket in tickets.items():
                if ticket is not None:
                    rows.setdefault(index, row)
        return list(rows)

    def waiting_rows(self) -> int:
        """How many rows wait for a reward."""
        return sum(any(ticket is not None for ticket in tickets.values()) for tickets in self.missing.values())

    def oldest(self) -> Ticket | None:
        """The ticket of the oldest waiting row."""
        tickets = (ticket for row in self.missing.values() for ticket in row.values() if ticket is not None)
        return next(tickets, None)

    def resume(self) -> None:
        """A run begins, perhaps in mid-episode: steps may have been made that were not announced."""
        self._between_runs = [True] * len(self._open)

    def announce(self, index: int, ticket: Ticket) -> bool:
        """Register the ticket of the transition to be stored next; False if it is not a new ticket.

        Raises:
            ValueError: a step of the episode was left out: an agent never does that, a wrapper that skips frames does.
        """
        newest = self._newest[index]
        if newest is not None and ticket <= newest:
            return False
        same = newest is not None and newest.episode == ticket.episode
        if newest is not None and not self._between_runs[index] and ticket.step != (newest.step + 1 if same else 1):
            raise ValueError(f"{STEPS_OF_ITS_OWN} ({newest}; then {ticket})")
        self._between_runs[index] = False
        self._newest[index] = ticket
        self._open[index][ticket] = _Open()
        self._counts["submitted"] += 1
        return True

    def knows(self, index: int, ticket: Ticket) -> bool:
        """Whether a ticket was announced, and its reward is still to come."""
        return ticket in self._open[index]

    def close(self, row: int) -> None:
        """Close a row before it is written; tickets of its old transitions become stale."""
        for index, ticket in self.missing.pop(row, {}).items():
            if ticket is not None:
                self._abandon(index, ticket)
        self.missing[row] = dict.fromkeys(range(len(self._open)))

    def overwrite(self, row: int, index: int) -> None:
        """The transition of one environment is given up: its late reward will be dropped."""
        ticket = self.missing[row].pop(index)
        if not self.missing[row]:
            del self.missing[row]
        if ticket is not None:
            self._abandon(index, ticket)

    def bind(self, row: int, tickets: Sequence[Ticket | None], write: Callable[[int, int, float], None]) -> None:
        """Open a written row for those environments whose rewards are known.

        Args:
            row: a closed row.
            tickets: one announced ticket per environment; None for a reward that came with the step.
            write: called with row, index and reward, for rewards that arrived early.
        """
        missing: dict[int, Ticket | None] = {}
        for index, ticket in enumerate(tickets):
            if ticket is None:
                continue
            entry = self._open[index].get(ticket)
            if entry is None or entry.stale:
                missing[index] = None  # its reward was skipped meanwhile
            elif entry.reward is None:
                entry.row = row
                missing[index] = ticket
            else:
                write(row, index, entry.reward)
                del self._open[index][ticket]
                self._counts["delivered"] += 1
        if missing:
            self.missing[row] = missing
        else:
            del self.missing[row]

    def deliver(self, index: int, ticket: Ticket, reward: float, write: Callable[[int, int, float], None]) -> None:
        """Write a late reward to its row (see `bind`), or drop it if the row was overwritten.

        Raises:
            RuntimeError: the ticket is unknown, or its reward was already delivered.
        """
        tickets, delivered = self._open[index], self._delivered[index]
        if ticket not in tickets:
            # The last step of an episode may never have returned: interrupted, or another environment raised.
            others = [self._newest[index], *tickets]
            later = any(other and other.episode == ticket.episode and other > ticket for other in others)
            if not later and (delivered is None or ticket > delivered):
                self._delivered[index] = ticket
                self._counts["submitted"] += 1
                self._counts["stale"] += 1
                return
            raise RuntimeError(f"a reward came twice, or for a ticket that is unknown ({ticket})")
        for passed in list(takewhile(lambda other: other < ticket, tickets)):
            self._fail(index, passed)
        self._delivered[index] = ticket
        entry = tickets[ticket]
        if entry.row is not None:
            write(entry.row, index, reward)  # before the row is opened
            row = self.missing[entry.row]
            del row[index]
            if not row:
                del self.missing[entry.row]
            self._counts["delivered"] += 1
        elif not entry.stale:
            entry.reward = reward
            return
        del tickets[ticket]

    def give_up(self, *, unstored: bool) -> None:
        """Mark outstanding tickets as failed, with `unstored` also those whose transition will never be stored."""
        for index, tickets in enumerate(self._open):
            for ticket in list(tickets):
                if unstored or tickets[ticket].row is not None or tickets[ticket].stale:
                    self._fail(index, ticket)

    def cancel(self) -> None:
        """Forget all tickets: another source of rewards follows, whose tickets may repeat."""
        for tickets in self._open:
            self._counts["cancelled"] += sum(not entry.stale for entry in tickets.values())
            tickets.clear()
        self._newest = [None] * len(self._open)
        self._delivered = [None] * len(self._open)
        self.missing = {row: dict.fromkeys(indices) for row, indices in self.missing.items()}

    def discard(self) -> None:
        """Close all rows of an emptied buffer: their late rewards will be dropped."""
        for row in list(self.missing):
            self.close(row)
        self.missing.clear()

    def snapshot(self) -> RewardLedger:
        """A copy for saving, in which outstanding tickets are cancelled."""
        copied = copy.deepcopy(self)
        copied.cancel()
        return copied

    def _abandon(self, index: int, ticket: Ticket) -> None:
        self._open[index][ticket] = _Open(stale=True)
        self._counts["stale"] += 1

    def _fail(self, index: int, ticket: Ticket) -> None:
        """End a ticket whose reward will not arrive or whose transition was never stored."""
        entry = self._open[index].pop(ticket)
        row = None if entry.row is None else self.missing.get(entry.row, {})
        if row is not None and index not in row:  # interrupted between its reward and this
            self._counts["delivered"] += 1
        elif row is not None:
            row[index] = None
            self._counts["failed"] += 1
        elif not entry.stale:
            self._counts["stale"] += 1
