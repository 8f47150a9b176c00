"""Late rewards in any loop: which row of it waits for which reward, and the rewards that have come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import QueryError
from vlp_gym.rewards.ledger import RewardLedger
from vlp_gym.rewards.waiting import wait_for_rewards
from vlp_gym.wrappers.late_source import LateSource

Place: TypeAlias = "tuple[int, int]"
"""A row of the loop, and an environment."""
Rows: TypeAlias = "NDArray[np.int64] | tuple[NDArray[np.int64], NDArray[np.int64]]"


class LateRewards:
    """Puts the rewards of ``mode="async"`` where they belong, in a loop that you wrote yourself.

    On-policy, the rewards of a rollout are completed before the returns are computed::

        late = LateRewards(envs)
        for t in range(num_steps):
            observations, rewards[t], terminated, truncated, infos = envs.step(actions)
            late.step(t, infos)
        late.fill(rewards)

    Off-policy, transitions whose rewards have come are reported, and only these may be sampled::

        buffer.settled[row] = not late.step(row, infos)
        rows, rewards = late.ready()
        buffer.rewards[rows], buffer.settled[rows] = rewards, True

    Where every reward comes with its step (``mode="sync"``, and under a wrapper outside that makes steps of its own or
    changes rewards, which is logged), all this does nothing, so that one loop serves both. A loop that stores whole
    episodes gives each environment's steps of its episode as rows, and calls ``fill`` at its end.

    Args:
        envs: a `VLPRewardWrapper`, a `VLPVectorRewardWrapper`, or a vector environment with a `VLPRewardWrapper` around
            each environment; other wrappers may be around them. Each mode of Gymnasium's autoreset is understood.
        timeout_s: how long to wait when no reward comes.

    Raises:
        TypeError: if it is no environment.
        ValueError: if there is no reward wrapper, or not around each; if `timeout_s` is not above 0 and finite.

    Example:
        >>> from vlp_gym.testing import PaintedEnv, PaintedModel
        >>> from vlp_gym.wrappers import VLPRewardWrapper
        >>> env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel(), mode="async")
        >>> late, rewards = LateRewards(env), np.zeros(4)
        >>> observation, info = env.reset(seed=0)
        >>> for t in range(4):
        ...     observation, rewards[t], terminated, truncated, info = env.step(0)
        ...     _ = late.step(t, info)
        >>> late.fill(rewards)
        >>> (rewards * 2**24).tolist()  # what is painted
        [1.0, 2.0, 3.0, 4.0]
        >>> env.close()
    """

    def __init__(self, envs: Any, *, timeout_s: float = 60.0) -> None:
        if not 0.0 < timeout_s < float("inf"):
            raise ValueError(f"timeout_s must be seconds, got {timeout_s}")
        self._source, self._timeout_s = LateSource(envs), timeout_s
        self.late = self._source.late
        """Whether rewards come late; if not, nothing is to be done."""
        self._num_envs = self._source.num_envs
        self._ledger = RewardLedger(self._num_envs or 1)
        self._steps = 0
        self._places: dict[int, list[Place]] = {}
        """Of each step some of whose rewards are missing."""
        self._waiting: dict[Place, tuple[int, Ticket]] = {}
        """The step and the ticket of what has no reward yet."""
        self._failed: dict[Place, Ticket] = {}
        """What will have none."""
        self._came: dict[Place, float] = {}
        """Rewards that came and were not taken yet."""
        self._first: dict[int, Ticket] = {}
        """Of each environment, the first ticket since `reset`: nobody waits for those before."""
        self._off_policy = False
        """Rewards are taken by `ready`: a row that is given again was overwritten."""
        self._together: bool | None = None
        """The rows are those of an array ``[T, num_envs]``: one number for all environments."""

    def stats(self) -> dict[str, int]:
        """Counts of tickets; submitted = delivered + stale + failed + cancelled + pending, always."""
        return self._ledger.stats()

    def step(self, row: int | Sequence[int] | NDArray[Any] | Tensor, infos: Any) -> Any:
        """Note which transitions a step has made; call it after each step of the environment.

        Args:
            row: where the loop keeps the transition; of a vector one row for all environments, or one for each.
            infos: what the environment's ``step`` has returned.

        Returns:
            Whether the reward comes later: a bool, or bool ``[num_envs]``. False where it came with the step, and where
            a reset was in its place.

        Raises:
            ValueError: for a row whose reward was not taken yet (off-policy it is overwritten, and the late reward of
                its old transition will be dropped), infos that were given before or are no step's, and if steps were
                left out. What the model raises comes with the next step of the environment, or with `fill` or `ready`.
        """
        if not self.late:
            self._together = np.ndim(row) == 0  # type: ignore[arg-type]  # for the form of what `ready` returns
            return self._shaped([False] * (self._num_envs or 1))
        places = self._as_places(row)
        tickets = self._source.tickets(infos)
        new = {place: ticket for place, ticket in zip(places, tickets, strict=True) if ticket is not None}
        for place in places:
            self._make_free(place)
        for (_, env), ticket in new.items():
            self._announce(env, ticket)
        step, self._steps = self._steps, self._steps + 1
        self._places[step] = places
        self._waiting |= {place: (step, ticket) for place, ticket in new.items()}
        self._ledger.close(step)
        self._ledger.bind(step, tickets, self._write)
        self._take(raises=False)  # the loop must be told which rewards are late
        return self._shaped([ticket is not None for ticket in tickets])

    def fill(self, rewards: NDArray[Any] | Tensor, env: int | None = None) -> None:
        """Write the rewards of all steps since the last call into their rows, and wait for those that are missing.

        Args:
            rewards: a float array or tensor, ``[T]``, or ``[T, num_envs]`` of a vector environment; changed in place.
            env: only this environment of a vector, whose episode is over; then ``[T]``.

        Raises:
            TypeError: if it is neither.
            ValueError: if it is of another shape, or has not all rows.
            QueryTimeout: if no reward comes for too long.
            QueryError: if one will not come: then the rows are free again; or what the reward model raised: then call
                `reset`, or this again.
        """
        if not self.late:
            return
        envs = range(self._num_envs or 1)
        if env is not None:
            if env not in envs:
                raise ValueError(f"expected env from 0 to {len(envs) - 1}, got {env}")
            envs = range(env, env + 1)
        places = [place for place in (*self._waiting, *self._came, *self._failed) if place[1] in envs]
        alone = self._num_envs is None or env is not None
        _check_rewards(rewards, 1 + max((row for row, _ in places), default=-1), None if alone else self._num_envs)
        self._wait(lambda: not any(each in envs for each in self._ledger.waiting()))
        failed = [self._failed.pop(place) for place in places if place in self._failed]
        if failed:
            for place in places:
                self._came.pop(place, None)
            raise QueryError(f"no reward came for {min(failed)}, and none is on its way")
        values = [self._came.pop(place) for place in places]
        rows, columns = np.array(places, np.int64).reshape(-1, 2).T
        _assign(rewards, (rows,) if alone else (rows, columns), values)

    def ready(self, *, wait: bool = False) -> tuple[Rows, NDArray[np.float64]]:
        """The rows whose rewards have come since the last call, and these rewards, float64 ``[M]``.

        Args:
            wait: for all rewards that are on their way, as before the first update and at the end of a run.

        Returns:
            The rows as they were given to `step`, int64 ``[M]``; where a vector environment has one row for all, the
            index of an array ``[T, num_envs]``: rows ``[M]`` and environments ``[M]``. What failed never comes.

        Raises:
            QueryTimeout: if no reward comes for too long.
            QueryError: what the reward model raised.
        """
        self._off_policy = True
        if self.late:
            self._take()
            if wait:
                self._wait(lambda: not self._ledger.waiting())
        came, self._came = self._came, {}
        rows, envs = np.array(list(came), np.int64).reshape(-1, 2).T
        together = self._num_envs is not None and self._together is not False
        return (rows, envs) if together else rows, np.array(list(came.values()), np.float64)

    def reset(self) -> None:
        """Forget all rows; the rewards that are still to come for them will be dropped."""
        self._ledger.discard()
        self._ledger.resume()
        for each in (self._places, self._waiting, self._failed, self._came, self._first):
            each.clear()

    def _as_places(self, row: Any) -> list[Place]:
        together = np.ndim(row) == 0
        num_envs = self._num_envs or 1
        rows = [row] * num_envs if together else np.asarray(row).tolist()
        if len(rows) != num_envs or (self._num_envs is None and not together):
            wanted = "one row" if self._num_envs is None else f"one row, or one for each of {num_envs} environments"
            raise ValueError(f"expected {wanted}, got {row}")
        if self._together is not None and self._together != together:
            raise ValueError("expected rows as before: either one for all environments at each step, or one for each")
        numbers = [int(each) for each in rows]
        if numbers != rows or min(numbers) < 0:
            raise ValueError(f"expected rows as whole numbers, at least 0, got {row}")
        self._together = together
        return [(number, env) for env, number in enumerate(numbers)]

    def _make_free(self, place: Place) -> None:
        """Forget the transition that was in a row before; on-policy, there must be none but one without a reward."""
        self._failed.pop(place, None)
        row, env = place
        if self._off_policy:
            self._came.pop(place, None)
            if place in self._waiting:
                self._ledger.overwrite(self._waiting.pop(place)[0], env)
        elif place in self._waiting or place in self._came:
            where = "" if self._num_envs is None else f" of environment {env}"
            raise ValueError(
                f"row {row}{where} was given twice, and its first reward was not taken yet: call fill after each "
                "rollout, or ready after each step; reset forgets all rows"
            )

    def _announce(self, env: int, ticket: Ticket) -> None:
        try:
            new = self._ledger.announce(env, ticket)
        except ValueError as error:
            raise ValueError(
                f"LateRewards.step was not called after each step of the environment, or {error}"
            ) from None
        if not new:
            raise ValueError(f"these infos were given before ({ticket})")
        self._first.setdefault(env, ticket)

    def _write(self, step: int, env: int, reward: float) -> None:
        place = self._places[step][env]
        del self._waiting[place]
        self._came[place] = reward

    def _take(self, timeout_s: float = 0.0, *, raises: bool = True) -> bool:
        """Take what has come; whether there was anything."""
        came = False
        for env, deliveries in self._source.poll(timeout_s, raises=raises):
            for ticket, reward, *_ in deliveries:
                if self._ledger.knows(env, ticket) or ticket > self._first.get(env, ticket):
                    self._ledger.deliver(env, ticket, reward, self._write)
                came = True
        self._sweep()
        return came

    def _sweep(self) -> None:
        """Note what has failed, and forget the steps of which nothing is on its way."""
        for step, places in list(self._places.items()):
            missing = self._ledger.missing.get(step, {})
            for env, ticket in missing.items():
                if ticket is None and self._waiting.get(places[env], (None,))[0] == step:
                    self._failed[places[env]] = self._waiting.pop(places[env])[1]
            if not any(missing.values()):
                self._ledger.missing.pop(step, None)
                del self._places[step]

    def _wait(self, done: Callable[[], bool]) -> None:
        wait_for_rewards(self._ledger, done, self._take, self._source.idle, self._timeout_s)
        self._sweep()

    def _shaped(self, late: list[bool]) -> Any:
        return late[0] if self._num_envs is None else np.array(late)


def _check_rewards(rewards: Any, rows: int, num_envs: int | None) -> None:
    """Raise unless these are float rewards ``[T]`` or ``[T, num_envs]`` with that many rows at least."""
    if not isinstance(rewards, (np.ndarray, Tensor)):
        raise TypeError(f"expected rewards as a NumPy array or torch tensor, got {type(rewards).__name__}")
    floats = rewards.is_floating_point() if isinstance(rewards, Tensor) else rewards.dtype.kind == "f"
    if not floats:
        raise TypeError(f"expected rewards of a float dtype, got {rewards.dtype}")
    shape = tuple(rewards.shape)
    if len(shape) != (1 if num_envs is None else 2) or shape[0] < rows or shape[1:] not in ((), (num_envs,)):
        wanted = "[T]" if num_envs is None else f"[T, {num_envs}]"
        raise ValueError(f"expected rewards {wanted} with T at least {rows}, got {list(shape)}")


def _assign(rewards: Any, index: tuple[NDArray[np.int64], ...], values: list[float]) -> None:
    if isinstance(rewards, Tensor):
        places = tuple(torch.from_numpy(each).to(rewards.device) for each in index)
        with torch.no_grad():
            rewards[places] = torch.tensor(values, dtype=rewards.dtype, device=rewards.device)
    else:
        rewards[index] = values
