"""The methods that all wrappers pass on to their stream."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.rewards.stream import RewardStream

NO_RELABELLING = (
    "HerReplayBuffer makes up transitions and asks the environment's compute_reward for their rewards, which "
    "knows nothing of the sentence; use replay_buffer_class=VLPReplayBuffer or VLPDictReplayBuffer"
)
RESET_IN_SB3 = (
    "where an error or Ctrl-C has ended a learn() of Stable-Baselines3, model.set_env(model.get_env()) makes the next "
    "one reset"
)


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

    def raise_in_poll(self, on: bool = True) -> None:
        """From now on `poll` and `flush` raise what the model has raised, and a step does not.

        For code that polls after each step, and loses the steps of the other environments of a vector where one raises.
        """
        self._stream.raises_in_poll = on

    def take_late_rewards(self, on: bool = True) -> None:
        """Let rewards come late until a reset in mid-episode, whether or not anybody is seen to take them.

        A step waits for its reward unless somebody has called `poll` or `flush` since the reset. Where that comes too
        late, as with rewards that are taken at the end of a rollout, call this after each reset of your own.
        """
        self._stream.take_late_rewards(on)

    @property
    def success_threshold(self) -> float | None:
        """A score at or over it is a success; None: nothing is."""
        return self._stream.shaping.success_threshold

    @property
    def late(self) -> bool:
        """Whether rewards may come late: the mode is "async"."""
        return self._stream.late

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse: a live model is no part of a pickle, and worker processes cannot be copied."""
        raise TypeError(
            f"a live {type(self).__name__} cannot be pickled: its model lives in this process; "
            f"make the wrapper in the process that uses it{self._example}"
        )
