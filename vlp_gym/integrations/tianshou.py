"""Tianshou with rewards that come late: a replay buffer that is sampled when its rewards are there.

```python
envs = DummyVectorEnv([lambda: VLPRewardWrapper(make_env(), "press the button", engine) for _ in range(4)])
collector = Collector(algorithm, envs, VLPVectorReplayBuffer(20_000, envs))
```

Tianshou's own hooks come too early for this: a step hook is called before the transition has a place in the buffer, and
what an episode hook returns is taken only where whole episodes are collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.errors import QueryError, missing_extra
from vlp_gym.wrappers.late import LateRewards

try:
    from tianshou.data import VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
except ImportError as error:
    raise missing_extra(error, 'Tianshou is not installed: pip install "vlp_gym[tianshou]"') from error


class LateReplayBuffer:
    """Base of a buffer of Tianshou's for ``mode="async"``: a sample waits until all its rewards are there.

    Put it before any of Tianshou's vector buffers that keeps rewards as they are::

        class Mine(LateReplayBuffer, PrioritizedVectorReplayBuffer):
            pass

    Environments step on while the model works; rewards are waited for when the collector is through and the algorithm
    samples, on-policy and off-policy. With ``mode="sync"`` it is Tianshou's own.

    Args:
        total_size: number of transitions.
        envs: the `DummyVectorEnv` of the collector, whose environments have a `VLPRewardWrapper`, or one environment.
        timeout_s: how long to wait when no reward comes.
        options: other arguments of Tianshou's buffer.

    Raises:
        TypeError: if the environments live in other processes; use ``mode="sync"`` and Tianshou's own buffer there.
        ValueError: if one has no reward wrapper.
    """

    _late: list[LateRewards]
    _missing: set[int]

    def __init__(self, total_size: int, envs: Any, *, timeout_s: float = 60.0, **options: Any) -> None:
        self._late = [LateRewards(env, timeout_s=timeout_s) for env in _environments(envs)]
        self._missing = set()
        super().__init__(total_size, len(self._late), **options)  # type: ignore[call-arg]

    def add(self, batch: Any, buffer_ids: Any = None) -> Any:
        """Store one step of some environments, and take the late rewards that have come."""
        added = super().add(batch, buffer_ids)  # type: ignore[misc]
        lates = self._late if buffer_ids is None else [self._late[index] for index in buffer_ids]
        for place, (late, row) in enumerate(zip(lates, added[0].tolist(), strict=True)):
            if late.step(row, batch.info[place]):
                self._missing.add(row)
            else:
                self._missing.discard(row)
        for late in lates:
            self._take(late, wait=False)
        return added

    def sample_indices(self, batch_size: int | None) -> Any:
        """Wait for the rewards that are missing, and draw as Tianshou does.

        Raises:
            QueryError: if one will not come, or what the reward model raised.
            QueryTimeout: if no reward comes for too long.
        """
        self.settle()
        return super().sample_indices(batch_size)  # type: ignore[misc]

    def settle(self) -> None:
        """Wait for the rewards that are missing, as before a buffer is saved.

        Raises:
            QueryError, QueryTimeout: as `sample_indices`.
        """
        if self._missing:
            for late in self._late:
                self._take(late, wait=True)
        if self._missing:
            raise QueryError(
                f"no reward came for {len(self._missing)} transitions of the buffer, and none is on its way; "
                "reset() empties the buffer"
            )

    def reset(self, keep_statistics: bool = False) -> None:
        """Empty the buffer."""
        super().reset(keep_statistics)  # type: ignore[misc]
        self._missing.clear()
        for late in self._late:
            late.reset()

    def __getstate__(self) -> dict[str, Any]:
        """Wait for what is missing; the environments are no part of a file."""
        self.settle()
        return {**self.__dict__, "_late": []}

    def _take(self, late: LateRewards, *, wait: bool) -> None:
        rows, rewards = late.ready(wait=wait)
        self.rew[rows] = rewards  # type: ignore[attr-defined]
        self._missing.difference_update(np.asarray(rows).tolist())


class VLPVectorReplayBuffer(LateReplayBuffer, VectorReplayBuffer):  # type: ignore[misc]
    """`VectorReplayBuffer` for ``mode="async"``, see `LateReplayBuffer`."""


def _environments(envs: Any) -> Sequence[Any]:
    """The Gymnasium environments of a vector of Tianshou's."""
    if isinstance(envs, gym.Env):
        return [envs]
    while not isinstance(envs, DummyVectorEnv) and hasattr(envs, "venv"):  # wrappers such as VectorEnvNormObs
        envs = envs.venv
    if not isinstance(envs, DummyVectorEnv):
        raise TypeError(
            f"expected a DummyVectorEnv, got {type(envs).__name__}: with environments in other processes use "
            'mode="sync" and a buffer of Tianshou'
        )
    return [worker.env for worker in envs.workers]
