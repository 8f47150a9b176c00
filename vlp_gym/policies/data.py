"""What offline learners learn from: transitions of rollouts, and labelled pairs of segments."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError
from vlp_gym.policies.networks import MOST_ACTION
from vlp_gym.preferences.buffer import PreferenceBuffer


@dataclass(frozen=True)
class Block:
    """Tensors of one kind of data."""

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def fingerprint(self) -> str:
        """SHA-256 of the numbers."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(getattr(self, field.name).cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Transitions(Block):
    """M steps of rollouts.

    Attributes:
        states: float32 ``[M, S]``.
        actions: float32 ``[M, A]``, within +-`MOST_ACTION`.
        next_states: float32 ``[M, S]``.
        rewards: float32 ``[M]``.
        weights: float32 ``[M]``, at least 0: how much imitation counts a step.
    """

    states: Tensor
    actions: Tensor
    next_states: Tensor
    rewards: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True)
class Pairs(Block):
    """N labelled pairs of segments of L steps; shorter ones are padded with zeros at the end.

    Attributes:
        states: float32 ``[N, 2, L, S]``.
        actions: float32 ``[N, 2, L, A]``, within +-`MOST_ACTION`.
        mask: float32 ``[N, 2, L]``, 1 where a step is real, else 0.
        labels: float32 ``[N]``, P(first > second).
    """

    states: Tensor
    actions: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def transitions_of(
    trajectories: Sequence[Trajectory],
    *,
    rewards: Sequence[NDArray[np.floating]] | None = None,
    weights: Sequence[NDArray[np.floating]] | None = None,
) -> Transitions:
    """The steps of rollouts.

    Args:
        trajectories: with observations and actions.
        rewards: float ``[S]`` for each trajectory of S steps; default: the environment's own.
        weights: float ``[S]`` for each trajectory, at least 0; default: 1 for each step.

    Raises:
        DatasetError: there are no trajectories or steps, one lacks observations or actions, their sizes differ, or a
            reward or weight is missing, NaN, inf or (a weight) below 0.
    """
    check_recorded(trajectories)
    paid = [trajectory.episode_reward for trajectory in trajectories] if rewards is None else rewards
    counted = [np.ones(len(trajectory.episode_reward)) for trajectory in trajectories] if weights is None else weights
    for name, arrays in (("rewards", paid), ("weights", counted)):
        _check_steps(name, trajectories, arrays)
    observations, actions = ([getattr(t, name) for t in trajectories] for name in ("observation", "action"))
    return Transitions(
        _tensor([rows[:-1] for rows in observations]),
        _tensor(actions).clamp(-MOST_ACTION, MOST_ACTION),
        _tensor([rows[1:] for rows in observations]),
        _tensor(paid),
        _tensor(counted),
    )


def joined(blocks: Sequence[Transitions]) -> Transitions:
    """The transitions of one or more blocks, in one."""
    return Transitions(*(torch.cat([getattr(block, field.name) for block in blocks]) for field in fields(Transitions)))


def pairs_of(buffer: PreferenceBuffer, action_dim: int) -> Pairs:
    """The labelled pairs of a buffer.

    Args:
        buffer: pairs of segments, labelled.
        action_dim: A, numbers of an action, the last ones of the buffer's inputs.

    Raises:
        DatasetError: the buffer is empty, or its inputs are too short.
    """
    if not len(buffer):
        raise DatasetError("expected labelled pairs of segments, got none")
    if not 0 < action_dim < buffer.inputs.shape[3]:
        raise DatasetError(
            f"expected labelled pairs with states beside {action_dim} numbers of an action, "
            f"got {buffer.inputs.shape[3]} numbers in all"
        )
    inputs = torch.from_numpy(buffer.inputs)
    states, actions = inputs.split([inputs.shape[3] - action_dim, action_dim], dim=3)
    mask, labels = torch.from_numpy(buffer.mask).float(), torch.from_numpy(buffer.labels)
    return Pairs(states.contiguous(), actions.clamp(-MOST_ACTION, MOST_ACTION).contiguous(), mask, labels)


def check_recorded(trajectories: Sequence[Trajectory]) -> None:
    """Raise DatasetError unless there are trajectories with observations and actions of one size, and steps."""
    if not trajectories:
        raise DatasetError("expected trajectories to learn from, got none")
    for trajectory in trajectories:
        for name in ("observation", "action"):
            if getattr(trajectory, name) is None:
                raise DatasetError(
                    f"{trajectory.name}: expected the {name} of every step, found none; learning a policy needs data "
                    "of format version 2: collect it again"
                )
    for name in ("observation", "action"):
        sizes = sorted({getattr(trajectory, name).shape[1] for trajectory in trajectories})
        if len(sizes) > 1:
            raise DatasetError(f"expected one size of {name} in all trajectories, got {sizes}")
    for trajectory in trajectories:
        if not len(trajectory.episode_reward):
            raise DatasetError(f"{trajectory.name}: expected at least one step, got none")


def _check_steps(name: str, trajectories: Sequence[Trajectory], arrays: Sequence[NDArray[np.floating]]) -> None:
    if len(arrays) != len(trajectories):
        raise DatasetError(f"{name}: expected those of {len(trajectories)} trajectories, got {len(arrays)}")
    for trajectory, values in zip(trajectories, arrays, strict=True):
        if np.shape(values) != (steps := trajectory.episode_reward.shape):
            raise DatasetError(f"{trajectory.name}: expected {steps[0]} {name}, got the shape {list(np.shape(values))}")
        wrong = ~np.isfinite(values) | ((np.asarray(values) < 0) if name == "weights" else False)
        if wrong.any():
            step = int(np.argmax(wrong))
            kind = "finite numbers of at least 0" if name == "weights" else "finite numbers"
            raise DatasetError(f"{trajectory.name}: {name}: expected {kind}, got {values[step]} at step {step}")


def _tensor(parts: Sequence[NDArray[np.floating]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))
