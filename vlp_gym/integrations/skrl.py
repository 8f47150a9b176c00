"""skrl with rewards that come late: an environment, a memory that waits for its rewards, and a rewards shaper.

```python
env = VLPEnv(VLPRewardWrapper(env, "press the button", mode="async"))  # in the place of wrap_env
memory = VLPMemory(env, memory_size=20_000)
cfg.rewards_shaper = memory.rewards_shaper
```
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlp_gym.errors import QueryError, missing_extra
from vlp_gym.wrappers.late import LateRewards

try:
    from skrl.envs.wrappers.torch.gymnasium_envs import GymnasiumWrapper
    from skrl.memories.torch import RandomMemory
except ImportError as error:
    raise missing_extra(error, 'skrl is not installed: pip install "vlp_gym[skrl]"') from error

REWARDS = "rewards"


class VLPEnv(GymnasiumWrapper):
    """skrl's wrapper of a Gymnasium environment, which keeps the infos of the newest step for `VLPMemory`.

    It takes a `VLPRewardWrapper`, a `VLPVectorRewardWrapper`, or whatever `LateRewards` takes.
    """

    infos: Any = None

    def step(self, actions: Tensor) -> Any:
        """As skrl's."""
        answer = super().step(actions)
        self.infos = answer[-1]
        return answer

    def render(self, *args: Any, **options: Any) -> Any:
        """As skrl's, also where a vector environment has wrappers around it."""
        return self._env.render(*args, **options)


class VLPMemory(RandomMemory):
    """`RandomMemory` for ``mode="async"``: what is sampled has its own rewards.

    Off-policy, transitions whose rewards are missing are not drawn; on-policy, all rewards are waited for before the
    returns are computed. Give the agent ``cfg.rewards_shaper = memory.rewards_shaper``; a scale is `scale=` of the
    reward wrapper. With ``mode="sync"`` it is skrl's own.

    Args:
        env: the environment of the agent.
        memory_size: rows.
        timeout_s: how long to wait when no reward comes.
        options: other arguments of `RandomMemory`.

    Raises:
        TypeError: if `env` is no `VLPEnv`.
        ValueError: if it has no reward wrapper.
    """

    def __init__(self, env: VLPEnv, *, memory_size: int, timeout_s: float = 60.0, **options: Any) -> None:
        if not isinstance(env, VLPEnv):
            raise TypeError(f"expected a VLPEnv in the place of wrap_env(env), got {type(env).__name__}")
        super().__init__(memory_size=memory_size, **{"num_envs": env.num_envs, "device": env.device, **options})
        self._env, self._late = env, LateRewards(env._env, timeout_s=timeout_s)
        self._missing = np.zeros((memory_size, self.num_envs), bool)
        self._shaped = False

    def rewards_shaper(self, rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        """Note the newest transition; a late reward is 0 for now, and is added to its row when it comes.

        What skrl adds at a time limit, gamma * V(last observation), so stays.
        """
        rows = self.memory_index * self.num_envs + np.arange(self.num_envs)
        late = self._late.step(rows if self._env._vectorized else int(rows[0]), self._env.infos)
        self._missing[self.memory_index] = late
        self._shaped = True
        return torch.where(torch.from_numpy(self._missing[self.memory_index]).to(rewards.device)[:, None], 0.0, rewards)

    def add_samples(self, **tensors: Any) -> None:
        """Store one step of all environments.

        Raises:
            RuntimeError: if the rewards shaper has not seen the step, so that rewards may be placeholders.
        """
        if self._late.late and not self._shaped:
            raise RuntimeError("VLPMemory needs cfg.rewards_shaper = memory.rewards_shaper")
        self._shaped = False
        super().add_samples(**tensors)
        self._take(wait=False)

    def get_tensor_by_name(self, name: str) -> Tensor:
        """A whole tensor; the rewards as soon as all are there.

        Raises:
            QueryError: if one will not come, or what the reward model raised.
            QueryTimeout: if no reward comes for too long.
        """
        if name == REWARDS:
            self._settle()
        return super().get_tensor_by_name(name)

    def sample(
        self, names: list[str], *, batch_size: int, mini_batches: int = 1, sequence_length: int = 1
    ) -> list[list[Tensor]]:
        """Sample transitions whose rewards are there, uniformly; of sequences, and where rewards are no part, all.

        Raises:
            QueryError, QueryTimeout: as `get_tensor_by_name`.
        """
        options = {"batch_size": batch_size, "mini_batches": mini_batches, "sequence_length": sequence_length}
        if REWARDS not in names:
            return super().sample(names, **options)
        self._take(wait=False)
        known = np.flatnonzero(~self._missing.reshape(-1)[: len(self)])
        if sequence_length > 1 or len(known) in (0, len(self)):
            self._settle()
            return super().sample(names, **options)
        chosen = torch.randint(len(known), (batch_size,)) if self._replacement else torch.randperm(len(known))
        self.sampling_indexes = torch.from_numpy(known)[chosen[:batch_size]]
        return self.sample_by_index(names=names, indexes=self.sampling_indexes, mini_batches=mini_batches)

    def sample_all(self, names: list[str], **options: Any) -> list[list[Tensor]]:
        """All transitions in order, as skrl's; the rewards as soon as all are there."""
        if REWARDS in names:
            self._settle()
        return super().sample_all(names, **options)

    def reset(self) -> None:
        """Empty the memory."""
        super().reset()
        self._late.reset()
        self._missing[:] = False

    def save(self, *args: Any, **options: Any) -> None:
        """As skrl's, with all rewards."""
        self._settle()
        super().save(*args, **options)

    def _settle(self) -> None:
        if self._missing.any():
            self._take(wait=True)
        if missing := self._missing.sum():
            raise QueryError(f"no reward came for {missing} transitions of the memory, and none is on its way")

    def _take(self, *, wait: bool) -> None:
        rows, rewards = self._late.ready(wait=wait)
        flat = self.tensors_view[REWARDS]
        flat[torch.as_tensor(rows), 0] += torch.from_numpy(rewards).to(flat)
        self._missing.reshape(-1)[rows] = False
