"""The methods that all wrappers pass on to their stream."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.rewards.stream import RewardStream


class Streaming:
    """Base of all wrappers."""

    _stream: RewardStream
    _example = ""
    """Ends the message of `__reduce_ex__`."""

    @property
    def engine(self) -> QueryEngine:
        """The engine that asks the model."""
        return self._stream.engine

    def stats(self) -> dict[str, int]:
        """Counts of queries; submitted = delivered + stale + failed + cancelled + pending."""
        return self._stream.engine.stats()

    def latencies(self) -> dict[str, float]:
        """Seconds from a step to its score: ``latency_p50_s`` and ``latency_p99_s`` of the newest 1,000."""
        return self._stream.engine.latencies()

    def yield_to_learner(self, on: bool = True) -> None:
        """Let the model work while the environment steps and renders, and rest while the agent learns.

        Both need Python's interpreter lock; what waits for a reward is not held up.
        """
        self._stream.yield_to_learner(on)

    def deliver_by_poll(self) -> None:
        """From now on late rewards come by `poll` and `flush` alone, and no longer in infos.

        For code that may lose an info, as a vector environment does when one of its environments raises. Call `poll`
        after each step: it also raises what the model has raised.
        """
        self._stream.by_poll = True

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse: a live model is no part of a pickle, and worker processes cannot be copied."""
        raise TypeError(
            f"a live {type(self).__name__} cannot be pickled: its model lives in this process; "
            f"make the wrapper in the process that uses it{self._example}"
        )
