"""TorchRL with rewards that come late: `VLPRewardTransform`, on the environment and on the replay buffer.

```python
rewards = VLPRewardTransform()
env = TransformedEnv(GymWrapper(VLPRewardWrapper(env, "press the button", mode="async")), rewards)
collector = Collector(env, policy, postproc=rewards.clone(), ...)  # on-policy, or
buffer.append_transform(rewards.clone())  # off-policy
```
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torchrl.data import Unbounded
from torchrl.envs import Transform

from vlp_gym.errors import QueryError
from vlp_gym.integrations.torchrl.base import PLACE, REWARD, base_of
from vlp_gym.wrappers.late import LateRewards

logger = logging.getLogger("vlp_gym")

ROW = "vlp_row"
MEDDLING = (
    "%s reads or changes rewards in the environment, and late ones pass it by: each step waits for its reward. Put it "
    "behind VLPRewardTransform on the replay buffer, or apply it to the batches, to have late rewards"
)
ANOTHER = (
    "the reward of a transition is not known here: it was collected in another run, or through another transform. Give "
    "the buffer a clone() of the transform of its environment, and save a buffer after buffer[:] = buffer[:]"
)


class _Rewards:
    """The rewards of all transitions of an environment by their numbers, shared by all clones of a transform."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.rows: NDArray[np.int64]
        """Numbers of the transitions of the newest step, ``[*batch, 1]``; 0 where the reward came with it."""
        self.late: LateRewards | None = None
        """None before the first reset."""
        self.meddler = ""
        """Another transform that changes rewards: they must not come late."""
        self._first = 1 + secrets.randbelow(1 << 61)  # a buffer of another run must not find the rewards of this one
        self._count = 0
        self._values = np.full(1, np.nan)

    def read(self, infos: dict[str, Any], tensordict: TensorDictBase) -> None:
        """Number the transitions of a step: an info reader of TorchRL, which changes the infos afterwards."""
        if REWARD not in tensordict:  # a reset
            return
        assert self.late is not None
        batch_size = tensordict.batch_size
        size = batch_size.numel()
        rows = self._first + self._count + np.arange(size)
        late = not self.meddler and self.late.step(rows if batch_size else int(rows[0]), infos)
        self.rows = np.where(late, rows, 0).reshape(*batch_size, 1)
        self._count += size
        if self._count > len(self._values):
            self._values = np.append(self._values, np.full(self._count, np.nan))
        self._take(wait=False)

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The rewards of these transitions, as soon as all are there."""
        places = rows - self._first
        if ((places < 0) | (places >= self._count)).any():
            raise ValueError(ANOTHER)
        if np.isnan(self._values[places]).any():
            self._take(wait=True)
        values: NDArray[np.float64] = self._values[places]
        if (failed := np.isnan(values)).any():
            raise QueryError(f"no reward came for {failed.sum()} of {len(values)} transitions, and none is on its way")
        return values

    def wait_and_call(self, close: Callable[..., None], **options: Any) -> None:
        """Wait for what is on its way before the environment is closed."""
        with contextlib.suppress(QueryError):  # what is missing then is an error of whoever asks for it
            self._take(wait=True)
        close(**options)

    def _take(self, *, wait: bool) -> None:
        assert self.late is not None
        if not self.meddler:
            rows, values = self.late.ready(wait=wait)
            self._values[np.asarray(rows, np.int64) - self._first] = values


class VLPRewardTransform(Transform):
    """Gives each transition its own reward where they come late (``mode="async"``).

    In a `TransformedEnv` around a `GymWrapper` it numbers the transitions, in ``("next", "vlp_row")``. A ``clone()`` of
    it on the replay buffer, as ``postproc`` of a collector, or called with a batch, puts the rewards in their places,
    and waits for those that are missing. The number is then 0, so that ``buffer[:] = buffer[:]`` makes a buffer whole
    that is to be saved. With ``mode="sync"`` nothing changes.

    The environment lives in this process: one, or a vector environment of Gymnasium (with ``autoreset_mode="Disabled"``
    or, and then with ``flat_info=True``, "SameStep"). Where another transform of the environment reads or changes
    rewards (`RewardSum`, `RewardScaling`), each step waits for its reward, which is logged.

    Args:
        timeout_s: how long to wait when no reward comes.

    Raises:
        TypeError, ValueError: at the first reset, if the environment is no `GymWrapper` around a reward wrapper.
        QueryError, QueryTimeout: when called, if a reward will not come, or does not for too long.
    """

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        super().__init__()
        self._rewards = _Rewards(timeout_s)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if self._rewards.late is None:
            self._attach()
        rows = torch.zeros((*tensordict_reset.batch_size, 1), dtype=torch.int64, device=tensordict_reset.device)
        return tensordict_reset.set(ROW, rows)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set(ROW, torch.from_numpy(self._rewards.rows).to(next_tensordict.device))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Put the rewards of these transitions in their places."""
        rows = tensordict.get(("next", ROW), None)
        if rows is None:
            raise KeyError(f"no ('next', '{ROW}') in the data: give VLPRewardTransform to the TransformedEnv, too")
        late = rows != 0
        if late.any():
            rewards = tensordict["next", REWARD].clone()
            values = self._rewards.of(rows[late].cpu().numpy())
            rewards[late] = torch.from_numpy(values).to(rewards)
            tensordict.set(("next", REWARD), rewards)
            tensordict.set(("next", ROW), torch.zeros_like(rows))
        return tensordict

    def transform_observation_spec(self, observation_spec: Any) -> Any:
        """Add the number of the transition."""
        shape = (*observation_spec.shape, 1)
        observation_spec[ROW] = Unbounded(shape, dtype=torch.int64, device=observation_spec.device)
        return observation_spec

    def _check_batched_worker_compat(self) -> None:
        raise RuntimeError(f'VLPRewardTransform {PLACE}, or mode="sync" without this transform')

    def _attach(self) -> None:
        """Listen to the environment."""
        env, transforms = base_of(self.container)
        rewards = self._rewards
        rewards.late = LateRewards(env._env, timeout_s=rewards.timeout_s)
        env.info_dict_reader.insert(0, rewards.read)
        env.close = partial(rewards.wait_and_call, env.close)  # a Collector closes it before its last batch is whole
        for each in transforms:
            if REWARD in (*each.in_keys, *each.out_keys) and rewards.late.late:
                rewards.meddler = type(each).__name__
                logger.warning(MEDDLING, rewards.meddler)
                break
