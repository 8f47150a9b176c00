"""Records one rollout as a `Trajectory`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.data.trajectory import Trajectory

UNKNOWN = np.full((2, 3), np.nan, np.float32)


class Recorder:
    """Recorder of one rollout; resizes frames exactly as the models do.

    Args:
        size: side length of the stored square frames, pixels.
        observation: observation of the reset, float ``[O]``.
    """

    def __init__(self, size: int, observation: np.ndarray) -> None:
        self.size = size
        self.frames: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.rows: list[tuple[int, float, bool]] = []
        self.observations = [np.array(observation)]  # copies, because scripted policies modify observations
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    def step(self, action: np.ndarray, observation: np.ndarray, reward: float) -> None:
        """Record an environment step: action float ``[A]``, the observation after it float ``[O]``, and reward."""
        self.actions.append(np.clip(action, -1, 1))  # as the environment executes it
        self.observations.append(np.array(observation))
        self.rewards.append(float(reward))

    def add(self, frame: np.ndarray, success: bool) -> None:
        """Record a frame uint8 ``[H, W, 3]`` of the state after the last recorded step."""
        import torch

        from vlp_gym.frames.resize import resize_frames

        self.frames.append(resize_frames(torch.from_numpy(frame)[None], (self.size, self.size))[0].numpy())
        self.positions.append(self.positions_now())
        self.rows.append((len(self.rewards), self.rewards[-1] if self.rewards else 0.0, success))

    def positions_now(self) -> np.ndarray:
        """Hand and object after the last recorded step, float32 ``[2, 3]``, see `Trajectory`; here unknown."""
        return UNKNOWN

    def trajectory(self, **about: Any) -> Trajectory:
        """The recorded rollout; `about`: the fields of `Trajectory` from task to varied, and its sentences."""
        step, reward, success = zip(*self.rows, strict=True)
        return Trajectory(
            **about,
            frames=np.stack(self.frames),
            step=np.array(step, np.int64),
            reward=np.array(reward, np.float32),
            success=np.array(success, bool),
            episode_reward=np.array(self.rewards, np.float32),
            positions=np.stack(self.positions),
            observation=np.stack(self.observations).astype(np.float32),
            action=np.array(self.actions, np.float32).reshape(len(self.actions), -1),
        )
