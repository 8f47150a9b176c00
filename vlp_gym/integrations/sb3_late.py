"""How late rewards get from their source into a buffer of Stable-Baselines3: announced, awaited, written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from vlp_gym.answers import Ticket
from vlp_gym.errors import QueryTimeout
from vlp_gym.integrations.reward_normalizer import RewardNormalizer
from vlp_gym.integrations.sb3_ledger import RewardLedger
from vlp_gym.integrations.sb3_source import RewardSource
from vlp_gym.wrappers.stream import Delivery

SLICE_S = 0.05
"""One wait for one environment, before the others are asked too."""


class LateRewards:
    """What all buffers for late rewards have in common: the ledger, the source, and waiting."""

    n_envs: int
    normalizer: RewardNormalizer | None = None
    """Scales the rewards; set by the callback, and saved with the buffer."""
    _ledger: RewardLedger
    _write: Callable[[int, int, float], None]
    """Puts a reward into a row and column: the buffers' own."""
    _source: RewardSource | None = None
    _timeout_s = 60.0

    def stats(self) -> dict[str, int]:
        """Counts of tickets; submitted = delivered + stale + failed + cancelled + pending, always."""
        return self._ledger.stats()

    def attach(self, source: RewardSource, timeout_s: float = 60.0) -> None:
        """Take the rewards from this source from now on, and settle what an earlier run may have left in it.

        Args:
            source: of the environment that the transitions will come from.
            timeout_s: how long to wait when no reward comes.
        """
        if self._source is None or self._source.venv is not source.venv:
            self._ledger.cancel()
            if self.normalizer is not None:
                self.normalizer.restart()
        self._source, self._timeout_s = source, timeout_s
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is on its way, between runs: a reward that has not come then never will.

        Raises:
            QueryTimeout: if no reward comes for too long.
            QueryError: what the reward model raised.
        """
        if self._source is not None and self._source.late:
            self._wait(lambda: False)
            self._ledger.give_up(unstored=True)

    def announce(self, infos: Sequence[dict[str, Any]], rewards: NDArray[Any]) -> bool:
        """Take in what a step says, before its transition is stored; a second call with the same step does nothing.

        Args:
            infos: of the step, one for each environment.
            rewards: of the step, ``[num_envs]``.

        Returns:
            Whether there was a new ticket.
        """
        new = False
        for index, ticket in enumerate(tickets_of(infos)):
            if ticket is not None and self._ledger.announce(index, ticket):
                self._announced(index, rewards)
                self._receive(index, infos[index]["vlp"]["delivered"])
                new = True
        return new

    def _announced(self, index: int, rewards: NDArray[Any]) -> None:
        """Called for each new ticket."""

    def _receive(self, index: int, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._ledger.deliver(index, delivery.ticket, delivery.reward, self._write)
            self._heard(index, delivery)
            if self._source is not None:
                self._source.listener(delivery)

    def _heard(self, index: int, delivery: Delivery) -> None:
        """Called for each delivery."""

    def _take(self, indices: Sequence[int], timeout_s: float = 0.0) -> bool:
        """Take what the source has; whether there was anything."""
        came = False
        if self._source is not None and indices:
            for index, deliveries in self._source.poll(indices, timeout_s):
                self._receive(index, deliveries)
                came = came or bool(deliveries)
        return came

    def _wait(self, done: Callable[[], bool]) -> None:
        """Take rewards until that is the case, or nothing is on its way: then what is missing has failed.

        Raises:
            QueryTimeout: if no reward comes for too long.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._source is not None and not done():
            waiting = self._ledger.waiting()
            indices = [*waiting, *(index for index in range(self.n_envs) if index not in waiting)]
            if self._take(indices, SLICE_S):
                deadline = time.monotonic() + self._timeout_s
            elif self._source.idle():
                if not self._take(indices):  # what came between the two questions
                    self._ledger.give_up(unstored=False)
                    return
            elif time.monotonic() > deadline:
                oldest, pending = self._ledger.oldest(), self.stats()["pending"]
                raise QueryTimeout(
                    f"no reward came for {self._timeout_s:g} s; {pending} are pending"
                    + (f", the oldest: {oldest}" if oldest is not None else "")
                )
            else:
                time.sleep(0.001)  # a poll returns at once where what is pending is not of that environment


def tickets_of(infos: Sequence[dict[str, Any]]) -> list[Ticket | None]:
    """The ticket of each environment's newest transition; None where its reward came with the step."""
    return [info.get("vlp", {}).get("ticket") for info in infos]
