"""Records one rollout as a `Trajectory`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.metaworld.sentences import with_sentences

HAND, OBJECT = slice(0, 3), slice(4, 7)  # their positions in a Meta-World observation


class Recorder:
    """Recorder of one Meta-World rollout; resizes frames exactly as the models do.

    Args:
        env: environment with ``unwrapped.model``, ``data`` and ``camera_name``.
        size: side length of the stored square frames, pixels.
        observation: observation of the reset, float ``[39]``.
    """

    def __init__(self, env: Any, size: int, observation: np.ndarray) -> None:
        self.env, self.size = env, size
        self.frames: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.rows: list[tuple[int, float, bool]] = []
        self.observations = [np.array(observation)]  # copies, because scripted policies modify observations
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    def step(self, action: np.ndarray, observation: np.ndarray, reward: float) -> None:
        """Record an environment step: action float ``[4]``, the observation after it float ``[39]``, and reward."""
        self.actions.append(np.clip(action, -1, 1))  # as Meta-World executes it
        self.observations.append(np.array(observation))
        self.rewards.append(float(reward))

    def add(self, frame: np.ndarray, success: bool) -> None:
        """Record a frame uint8 ``[H, W, 3]`` of the state after the last recorded step."""
        import torch

        from vlp_gym.frames.resize import resize_frames

        self.frames.append(resize_frames(torch.from_numpy(frame)[None], (self.size, self.size))[0].numpy())
        self.positions.append(camera_positions(self.env, self.observations[-1]))
        self.rows.append((len(self.rewards), self.rewards[-1] if self.rewards else 0.0, success))

    def trajectory(self, **about: Any) -> Trajectory:
        """The recorded rollout with its task's sentences; `about`: the fields of `Trajectory` from task to varied."""
        step, reward, success = zip(*self.rows, strict=True)
        made = Trajectory(
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
        return with_sentences(made)


def camera_positions(env: Any, observation: np.ndarray) -> np.ndarray:
    """Hand and object, float32 ``[2, 3]``, in the rendering camera's frame: right, up and backwards, metres."""
    points = np.stack([observation[HAND], observation[OBJECT]])
    camera, data = env.unwrapped.model.camera(env.unwrapped.camera_name).id, env.unwrapped.data
    return ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).astype(np.float32)
