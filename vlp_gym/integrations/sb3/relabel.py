"""A replay buffer that labels its rows when they are sampled, each once for each reward that is learned.

Nothing has to be relabelled after a session of queries: no sample can have an older reward, wherever the ring stands.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlp_gym.errors import CheckpointError, MissingExtraError, QueryError

try:
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
except ImportError as error:
    raise MissingExtraError('Stable-Baselines3 is not installed: pip install "vlp_gym[sb3]"') from error

import numpy as np
import torch
from torch import Tensor

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""Observations ``[B, S]`` and actions ``[B, A]`` to rewards ``[B]``."""


class PreferenceReplayBuffer(ReplayBuffer):
    """A `ReplayBuffer` that pays what `PreferenceCallback` has learned; the rewards of the environment are never read.

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
        """The rows whose rewards are those of the reward function."""

    def pay(self, reward_fn: RewardFn, *, lasting: bool = True) -> None:
        """From now on, every sample has the rewards of this function.

        Args:
            reward_fn: observations, as they were before any normalization, and actions to rewards.
            lasting: it gives the same rewards every time, until `pay` is called again.
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

    def __getstate__(self) -> dict[str, Any]:
        """What has been learned is saved by the callback."""
        return {**self.__dict__, "_reward_fn": None}


_ARRAYS = ("observations", "next_observations", "actions", "dones", "timeouts")


def replay_tensors(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """The filled rows of a replay buffer, and where its ring stands, for a file of tensors."""
    tensors = {name: torch.from_numpy(getattr(buffer, name)[: buffer.size()]) for name in _ARRAYS}
    return {**tensors, "ring": torch.tensor([buffer.pos, int(buffer.full)])}


def fill_replay(buffer: ReplayBuffer, tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Put into a replay buffer what `replay_tensors` took out of another one of its shape.

    Raises:
        CheckpointError: if it does not fit.
    """
    for name in _ARRAYS:
        rows, full = len(tensors[name]), bool(tensors["ring"][1])
        fits = rows == buffer.buffer_size if full else rows <= buffer.buffer_size
        if not fits or tensors[name].shape[1:] != getattr(buffer, name).shape[1:]:
            raise CheckpointError(
                f"{folder}: expected {name} of the shape {getattr(buffer, name).shape}, got {list(tensors[name].shape)}"
            )
    for name in _ARRAYS:
        getattr(buffer, name)[: len(tensors[name])] = tensors[name].numpy()
    buffer.pos, buffer.full = int(tensors["ring"][0]), bool(tensors["ring"][1])


class StateEntropy:
    """The reward of unsupervised exploration: how far a state is from its k-th neighbour (PEBBLE, eq. 3).

    Args:
        buffer: where the neighbours are looked for.
        k: which neighbour.
        neighbours: how many rows, drawn at random, are looked at; all of them where there are fewer.
        seed: of that draw.
    """

    def __init__(self, buffer: ReplayBuffer, *, k: int = 5, neighbours: int = 2048, seed: int = 0) -> None:
        self.buffer, self.k, self.neighbours = buffer, k, neighbours
        self.rng = np.random.default_rng(seed)
        self.moments = (0, 0.0, 0.0)
        """Number of distances so far, their mean, and the sum of their squared deviations from it."""

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Distances over their running standard deviation, ``[B]``."""
        size = self.buffer.size()
        rows = np.arange(size) if size <= self.neighbours else self.rng.choice(size, self.neighbours, replace=False)
        others = self.buffer.to_torch(self.buffer.observations[rows]).float().flatten(0, 1).flatten(1)
        # Not by matrix products, which lose small distances between large numbers.
        distances = torch.cdist(observations.flatten(1), others, compute_mode="donot_use_mm_for_euclid_dist")
        # The state itself is among the others where it was drawn, at a distance of 0.
        nearest = distances.kthvalue(min(self.k + 1, len(others)), dim=1).values
        count, mean, square = self.moments
        for value in nearest.double().tolist():  # Welford's running moments
            count += 1
            delta = value - mean
            mean += delta / count
            square += delta * (value - mean)
        self.moments = (count, mean, square)
        deviation = (square / max(count - 1, 1)) ** 0.5
        return nearest / max(deviation, 1e-8)
