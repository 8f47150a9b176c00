"""Waiting for late rewards, the same in every loop and library."""

from __future__ import annotations

import time
from collections.abc import Callable

from vlp_gym.errors import QueryTimeout
from vlp_gym.rewards.ledger import RewardLedger

SLICE_S = 0.05
"""One wait for one environment, before the others are asked too."""


def wait_for_rewards(
    ledger: RewardLedger,
    done: Callable[[], bool],
    take: Callable[[float], bool],
    idle: Callable[[], bool],
    timeout_s: float,
) -> None:
    """Take rewards until `done`, or until nothing is on its way: then what is missing has failed.

    Args:
        ledger: the accounts of what is missing.
        done: whether enough has come.
        take: takes what has come, and waits so many seconds for the first; whether there was anything.
        idle: whether nothing is on its way.
        timeout_s: how long to wait when no reward comes.

    Raises:
        QueryTimeout: if no reward comes for too long.
        QueryError: what the reward model raised.
    """
    deadline = time.monotonic() + timeout_s
    while not done():
        if take(SLICE_S):
            deadline = time.monotonic() + timeout_s
        elif idle():
            if not take(0.0):  # what came between the two questions
                ledger.give_up(unstored=False)
                return
        elif time.monotonic() > deadline:
            oldest, pending = ledger.oldest(), ledger.stats()["pending"]
            raise QueryTimeout(
                f"no reward came for {timeout_s:g} s; {pending} are pending"
                + (f", the oldest: {oldest}" if oldest is not None else "")
            )
        else:
            time.sleep(0.001)  # a poll returns at once where what is pending is not of that environment
