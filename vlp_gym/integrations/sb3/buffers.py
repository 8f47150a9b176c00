"""Stable-Baselines3's buffers for rewards that come late: nothing is trained on before its own reward is there.

`VLPRewardCallback` attaches the source of the rewards; it is never pickled and no part of ``replay_buffer_kwargs``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict
from numpy.typing import NDArray
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import QueryError
from vlp_gym.integrations.sb3.source import RewardSource
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import ours_in, ticket_in
from vlp_gym.rewards.ledger import RewardLedger
from vlp_gym.rewards.normalizer import RewardNormalizer
from vlp_gym.rewards.waiting import wait_for_rewards

NO_SHARED_ROWS = (
    "optimize_memory_usage=True is not supported with late rewards: neighbouring rows share an observation, and rows "
    "are drawn in another way; set optimize_memory_usage=False"
)


class LateBuffer:
    """Base of all buffers for late rewards: the ledger, the source, and waiting."""

    n_envs: int
    normalizer: RewardNormalizer | None = None
    """Scales the rewards; set by the callback, and saved with the buffer."""
    _ledger: RewardLedger
    _write: Callable[[int, int, float], None]
    """Puts a reward into a row and column: the buffers' own."""
    _source: RewardSource | None = None
    _timeout_s = 60.0
    _announced: tuple[Any, list[Ticket | None]] = (None, [])
    """The infos of the newest step that was announced, and its tickets."""

    def stats(self) -> dict[str, int]:
        """Counts of tickets; submitted = delivered + stale + failed + cancelled + pending, always."""
        return self._ledger.stats()

    def attach(self, source: RewardSource, timeout_s: float = 60.0) -> None:
        """Take the rewards from this source from now on, and settle what an earlier run may have left in it.

        Args:
            source: brings the rewards of the environment that the transitions will come from.
            timeout_s: how long to wait when no reward comes.
        """
        if self._source is None or self._source.venv is not source.venv:
            self._ledger.cancel()
            if self.normalizer is not None:
                self.normalizer.restart()
        self._source, self._timeout_s = source, timeout_s
        self.settle()
        self._ledger.resume()

    def settle(self) -> None:
        """Wait until nothing is on its way, between runs: a reward that has not come then never will."""
        if self._source is not None and self._source.late:
            self._wait(lambda: False)
            self._ledger.give_up(unstored=True)

    def announce(self, infos: Sequence[dict[str, Any]], rewards: NDArray[Any]) -> list[Ticket | None]:
        """Take in a step before its transition is stored; a second call with the same infos does nothing.

        Args:
            infos: the step's infos, one for each environment.
            rewards: the step's rewards, ``[num_envs]``.

        Returns:
            The ticket of each environment's transition; None where its reward came with the step.

        Raises:
            ValueError: a wrapper outside the reward wrapper makes steps of its own.
        """
        before, known = self._announced
        if infos is before and known and ticket_in(ours_in(infos[0])) == known[0]:
            return known
        exact = self._source is not None and not self._source.late
        tickets = [None if exact else ticket_in(ours_in(info)) for info in infos]
        for index, ticket in enumerate(tickets):
            if ticket is not None and self._ledger.announce(index, ticket):
                self._on_ticket(index, rewards)
        self._announced = infos, tickets
        return tickets

    def _on_ticket(self, index: int, rewards: NDArray[Any]) -> None:
        """Hook for subclasses, called for each new ticket."""

    def _receive(self, index: int, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            self._ledger.deliver(index, delivery.ticket, delivery.reward, self._write)
            self._on_delivery(index, delivery)
            if self._source is not None:
                self._source.listener(index, delivery)

    def _on_delivery(self, index: int, delivery: Delivery) -> None:
        """Hook for subclasses, called once per delivered reward."""

    def _take(self, indices: Sequence[int], timeout_s: float = 0.0) -> bool:
        """Take what the source has; whether there was anything."""
        came = False
        if self._source is not None and indices:
            for index, deliveries in self._source.poll(indices, timeout_s):
                self._receive(index, deliveries)
                came |= bool(deliveries)
        return came

    def _wait(self, done: Callable[[], bool]) -> None:
        """Take rewards until that is the case, or nothing is on its way: then what is missing has failed.

        Raises:
            QueryTimeout: if no reward comes for too long.
            QueryError: what the reward model raised.
        """

        def take(timeout_s: float) -> bool:
            waiting = self._ledger.waiting()
            return self._take([*waiting, *(each for each in range(self.n_envs) if each not in waiting)], timeout_s)

        if self._source is not None:
            wait_for_rewards(self._ledger, done, take, self._source.idle, self._timeout_s)


class VLPReplayBuffer(LateBuffer, ReplayBuffer):
    """A `ReplayBuffer` for ``mode="async"``: a row is sampled only when the rewards of all its environments are there.

    ``SAC("MlpPolicy", env, replay_buffer_class=VLPReplayBuffer)``, and ``learn(..., callback=VLPRewardCallback())``.
    Without tickets in the infos (``mode="sync"``) it is Stable-Baselines3's own, to the bit. The arguments are those of
    `ReplayBuffer`. A saved buffer is whole: saving waits for the rewards that are on their way.

    Raises:
        ValueError: for ``optimize_memory_usage=True``.
    """

    def __init__(self, *args: Any, optimize_memory_usage: bool = False, **kwargs: Any) -> None:
        if optimize_memory_usage:
            raise ValueError(NO_SHARED_ROWS)
        spaces = [value for value in (*args, *kwargs.values()) if isinstance(value, Dict)]
        if spaces and not isinstance(self, sb3.DictReplayBuffer):
            raise TypeError(f"{type(self).__name__} takes no dictionary observations; use VLPDictReplayBuffer")
        super().__init__(*args, **kwargs)
        self._ledger = RewardLedger(self.n_envs)

    _span = 1
    """How many rows one sample reads."""
    _sampled = False
    run_ahead = 0.1
    """The share of the rows that may wait for their rewards: more, and `add` waits."""

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Store one step of all environments, and take the late rewards that have come.

        The environments may run ahead of the model by a tenth of the rows (`run_ahead`): then this waits.

        Raises:
            QueryTimeout: if no reward comes for too long.
            QueryError: what the reward model raised.
        """
        tickets = self.announce(infos, reward)
        row = self.pos
        self._ledger.close(row)  # an interrupt in between leaves half a row, which is not to be sampled
        super().add(obs, next_obs, action, reward, done, infos)
        self._ledger.bind(row, tickets, self._write)
        self._take(self._ledger.waiting())
        room = int(self.run_ahead * self.size())
        if len(self._ledger.missing) > room and self._ledger.waiting_rows() > room:  # the first counts failed ones too
            self._wait(lambda: not self._ledger.waiting())  # seldom and for all, so that batches fill

    def ready_share(self) -> float:
        """The share of the filled rows whose rewards are there."""
        return 1.0 - len(self._ledger.missing) / max(self.size(), 1)

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Sample rows whose rewards are there, uniformly.

        Raises:
            QueryTimeout: if no row is ready, and no reward comes for too long.
            QueryError: if no row is ready, and nothing is on its way; or what the reward model raised.
        """
        size = self.size()
        if not self._sampled:  # the agent's `learning_starts` counts rows whose rewards are there
            self._wait(lambda: not self._ledger.waiting())
            self._sampled = True
        closed = self._closed_starts()
        if size and len(closed) == size:
            self._wait(lambda: len(self._closed_starts()) < size)
            closed = self._closed_starts()
        if size and len(closed) == size:
            raise QueryError(
                f"none of the {size} rows of the replay buffer has all its rewards, and none is on its way; "
                "give learn() a VLPRewardCallback, which fetches them"
            )
        # The draw of ReplayBuffer, from the same generator: with nothing pending, nothing differs.
        rows = np.random.randint(0, size, size=batch_size)  # noqa: NPY002
        if not len(closed):
            return self._get_samples(rows, env=env)
        lookup = np.zeros(size, np.bool_)
        lookup[closed] = True
        while (again := lookup[rows]).any():
            if 2 * len(closed) > size:  # a list of the open rows is short, and drawing blindly would take long
                choices = np.setdiff1d(np.arange(size), closed)
                rows[again] = choices[np.random.randint(0, len(choices), size=again.sum())]  # noqa: NPY002
            else:
                rows[again] = np.random.randint(0, size, size=again.sum())  # noqa: NPY002
        return self._get_samples(rows, env=env)

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self._ledger.discard()

    def __getstate__(self) -> dict[str, Any]:
        """Wait for what is pending; the source of the rewards is no part of a file."""
        self._wait(lambda: not self._ledger.waiting())
        return {**self.__dict__, "_source": None, "_announced": (None, []), "_ledger": self._ledger.snapshot()}

    def _write(self, row: int, index: int, reward: float) -> None:
        self.rewards[row, index] = reward

    def _on_delivery(self, index: int, delivery: Delivery) -> None:
        if self.normalizer is not None:
            self.normalizer.update(index, delivery.ticket.episode, delivery.reward)

    def _normalize_reward(self, reward: Any, env: Any = None) -> Any:  # type: ignore[override]
        """The rows keep raw rewards, so that all are scaled alike."""
        reward = super()._normalize_reward(reward, env)
        return reward if self.normalizer is None else self.normalizer.scale(reward)

    def _closed_starts(self) -> NDArray[np.intp]:
        """The rows from which no sample may start: a reward is missing in the rows that it would read."""
        rows = np.fromiter(self._ledger.missing, np.intp)
        rows = rows[rows < self.size()]
        oldest = self.pos if self.full else 0
        age = (rows - oldest) % self.buffer_size  # 0 is the oldest row: here no window runs over the edge
        starts = (age[:, None] - np.arange(self._span)).ravel()
        return np.unique((starts[starts >= 0] + oldest) % self.buffer_size)


class VLPDictReplayBuffer(VLPReplayBuffer, sb3.DictReplayBuffer):  # type: ignore[misc]
    """`VLPReplayBuffer` for observations that are dictionaries."""


class VLPNStepReplayBuffer(VLPReplayBuffer, sb3.NStepReplayBuffer):
    """`VLPReplayBuffer` for n-step returns: a sample starts only where all rewards of its n rows are there.

    Give the algorithm ``replay_buffer_kwargs={"n_steps": ..., "gamma": ...}``, not ``n_steps``.
    """

    @property
    def _span(self) -> int:  # type: ignore[override]
        return self.n_steps


class VLPRolloutBuffer(LateBuffer, RolloutBuffer):
    """A `RolloutBuffer` for ``mode="async"``: the returns are computed when all rewards of the rollout are there.

    `VLPRewardCallback` puts it in the place of the model's own; ``rollout_buffer_class=VLPRolloutBuffer`` does too.
    """

    _late: NDArray[np.float32]
    """Late rewards, ``[buffer_size, n_envs]``."""
    _tickets: list[list[Ticket | None]]
    """Of each row that was stored."""
    _stored: list[Ticket | None] | None = None
    """Those of the newest row."""

    def _on_ticket(self, index: int, rewards: NDArray[Any]) -> None:
        """The placeholder becomes 0.0.

        What Stable-Baselines3 then adds for a time-out, gamma * V(terminal observation), is all that is stored; the
        late reward is added to it. The sum is that of ``mode="sync"``, to the bit.
        """
        rewards[index] = 0.0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one step of all environments.

        Raises:
            RuntimeError: if the callback did not see the step, so that the rewards may be placeholders.
        """
        tickets = self._announced[1]
        unseen = not tickets or tickets is self._stored
        if self._source is None or (self._source.late and unseen):
            raise RuntimeError(f"{type(self).__name__} needs learn(..., callback=VLPRewardCallback())")
        tickets = [None] * self.n_envs if unseen else tickets
        self._stored = tickets
        row = self.pos
        self._ledger.close(row)
        super().add(*args, **kwargs)
        self._tickets.append(tickets)
        self._ledger.bind(row, tickets, self._write)
        if self._source.local:
            self._take(self._ledger.waiting())

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Wait for all rewards of the rollout, put them in their places, and compute the returns.

        Raises:
            QueryTimeout: if no reward comes for too long.
            QueryError: if one will not come, or what the reward model raised.
        """
        self._wait(lambda: not self._ledger.waiting())
        if self._ledger.missing:
            row, missing = next(iter(self._ledger.missing.items()))
            raise QueryError(f"no reward came for {self._tickets[row][next(iter(missing))]}, and none is on its way")
        late = self._late
        if self.normalizer is not None:
            for row, tickets in enumerate(self._tickets):  # in this order, whenever they came: the same every time
                for index, ticket in enumerate(tickets):
                    if ticket is not None:
                        self.normalizer.update(index, ticket.episode, float(late[row, index]))
            late = self.normalizer.scale(late)
        self.rewards += late
        super().compute_returns_and_advantage(last_values, dones)

    def reset(self) -> None:
        """Empty the buffer; rewards that are still to come for it will be dropped."""
        super().reset()
        if "_ledger" not in vars(self):
            self._ledger = RewardLedger(self.n_envs)
        self._ledger.discard()
        self._late = np.zeros_like(self.rewards)
        self._tickets, self._stored = [], self._announced[1]

    def _write(self, row: int, index: int, reward: float) -> None:
        self._late[row, index] = reward


class VLPDictRolloutBuffer(VLPRolloutBuffer, sb3.DictRolloutBuffer):  # type: ignore[misc]
    """`VLPRolloutBuffer` for observations that are dictionaries."""


_OURS = {RolloutBuffer: VLPRolloutBuffer, sb3.DictRolloutBuffer: VLPDictRolloutBuffer}


@functools.cache
def late_rollout_class(kind: type[RolloutBuffer]) -> type[VLPRolloutBuffer]:
    """The twin for late rewards of any class of rollout buffer, such as sb3-contrib's for RecurrentPPO."""
    if issubclass(kind, VLPRolloutBuffer):
        return kind
    return _OURS.get(kind) or type(f"VLP{kind.__name__}", (VLPRolloutBuffer, kind), {"__module__": __name__})


def late_rollout_buffer(buffer: RolloutBuffer) -> VLPRolloutBuffer:
    """An empty buffer for late rewards with all settings of this one."""
    twin = object.__new__(late_rollout_class(type(buffer)))
    vars(twin).update(vars(buffer))
    twin.reset()
    return twin


def __getattr__(name: str) -> Any:
    """`VLPRecurrentRolloutBuffer` is made when it is first used: it needs sb3-contrib."""
    if name != "VLPRecurrentRolloutBuffer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer

    return late_rollout_class(RecurrentRolloutBuffer)
