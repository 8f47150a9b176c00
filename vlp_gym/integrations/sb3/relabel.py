"""A replay buffer that computes rewards when rows are sampled, once for each row and learned reward.

After a session nothing has to be relabelled at once, and no sample can have an older reward.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from vlp_gym.errors import CheckpointError, QueryError
from vlp_gym.schema import Spec, check_tensors

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""Maps observations ``[B, S]`` and actions ``[B, A]`` to rewards ``[B]``."""


class PreferenceReplayBuffer(ReplayBuffer):
    """A `ReplayBuffer` with the rewards that `PreferenceCallback` learns; those of the environment are never read.

    ``SAC("MlpPolicy", env, replay_buffer_class=PreferenceReplayBuffer)``, and
    ``learn(..., callback=PreferenceCallback(labeler))``. The arguments are those of `ReplayBuffer`.

    Raises:
        ValueError: for ``optimize_memory_usage=True``.
    """

    def __init__(self, *args: Any, optimize_memory_usage: bool = False, **kwargs: Any) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True is not supported: its rows cannot be saved; set it to False")
        super().__init__(*args, **kwargs)
        self._reward_fn: RewardFn | None = None
        self._lasting = True
        self._labelled = np.zeros(self.buffer_size, np.bool_)
        """Rows whose rewards were computed by the current reward function."""

    def set_reward(self, reward_fn: RewardFn, *, lasting: bool = True) -> None:
        """From now on, every sample has the rewards of this function.

        Args:
            reward_fn: maps observations, without any normalization, and actions to rewards.
            lasting: whether it gives the same rewards every time; then each row is computed once.
        """
        self._reward_fn, self._lasting = reward_fn, lasting
        self._labelled[:] = False

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one step of all environments."""
        self._labelled[self.pos] = False
        super().add(*args, **kwargs)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> ReplayBufferSamples:
        if self._reward_fn is None:
            raise QueryError("no reward was learned yet; give learn() a PreferenceCallback, which brings one")
        rows = np.unique(batch_inds)
        rows = rows[~self._labelled[rows]]
        if len(rows):
            states, actions = (self.to_torch(block[rows]).float() for block in (self.observations, self.actions))
            with torch.no_grad():
                rewards = self._reward_fn(states.flatten(0, 1).flatten(1), actions.flatten(0, 1))
            self.rewards[rows] = rewards.cpu().numpy().reshape(len(rows), self.n_envs)
            self._labelled[rows] = self._lasting
        return super()._get_samples(batch_inds, env)

    def draw_states(self, count: int, rng: np.random.Generator) -> Tensor:
        """Observations of `count` random rows, or of all if there are fewer, float32 ``[rows * num_envs, S]``."""
        size = self.size()
        rows = np.arange(size) if size <= count else rng.choice(size, count, replace=False)
        return self.to_torch(self.observations[rows]).float().flatten(0, 1).flatten(1)

    def __getstate__(self) -> dict[str, Any]:
        """Without the reward function, which the callback saves."""
        return {**self.__dict__, "_reward_fn": None}


_ARRAYS = ("observations", "next_observations", "actions", "dones", "timeouts")


def replay_tensors(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """The filled rows of a replay buffer, and the position of its ring, for a file of tensors."""
    tensors = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in _ARRAYS}
    return {**tensors, "ring": torch.tensor([buffer.pos, int(buffer.full)])}


def check_replay(buffer: ReplayBuffer, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Raise CheckpointError, which names `where`, unless `fill_replay` can put these tensors into a buffer."""
    table = {"ring": Spec(torch.int64, (2,), low=0)}
    for name in _ARRAYS:
        low, high = (0, 1) if name in ("dones", "timeouts") else (-np.inf, np.inf)
        rows = torch.from_numpy(getattr(buffer, name)[:0])
        table[name] = Spec(rows.dtype, ("N", *rows.shape[1:]), low, high)
    count = check_tensors(tensors, table, where)["N"]
    place, full = tensors["ring"].tolist()
    if full > 1 or place >= buffer.buffer_size or count != (buffer.buffer_size if full else place):
        raise CheckpointError(
            f"{where}: expected the rows of a ring of {buffer.buffer_size}, got {count} rows, next row {place}, "
            f"full {full}"
        )


def fill_replay(buffer: ReplayBuffer, tensors: dict[str, Tensor]) -> None:
    """Put into a replay buffer what `replay_tensors` took out of another one of its shape."""
    for name in _ARRAYS:
        getattr(buffer, name)[: len(tensors[name])] = tensors[name].numpy()
    buffer.pos, buffer.full = int(tensors["ring"][0]), bool(tensors["ring"][1])
