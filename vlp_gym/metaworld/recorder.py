"""Gathers one rollout, frame by frame, into a `Trajectory`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.metaworld.sentences import with_sentences

HAND, OBJECT = slice(0, 3), slice(4, 7)  # where a Meta-World observation holds their positions


class Recorder:
    """One rollout of a Meta-World task; frames are resized exactly as the models resize theirs.

    Args:
        env: what is recorded, with ``unwrapped.model``, ``data`` and ``camera_name``.
        size: side of the square frames that are kept, pixels.
        observation: of the reset, float ``[39]``.
    """

    def __init__(self, env: Any, size: int, observation: np.ndarray) -> None:
        self.env, self.size = env, size
        self.frames: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.rows: list[tuple[int, float, bool]] = []
        self.observations = [np.array(observation)]  # own copies: scripted policies write into what they are given
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []

    def step(self, action: np.ndarray, observation: np.ndarray, reward: float) -> None:
        """Keep one environment step: its action float ``[4]``, what was seen after it, and its reward."""
        self.actions.append(np.clip(action, -1, 1))  # as Meta-World executes it
        self.observations.append(np.array(observation))
        self.rewards.append(float(reward))

    def add(self, frame: np.ndarray, success: bool) -> None:
        """Keep a frame uint8 ``[H, W, 3]``, which shows the state after the last step that was kept."""
        import torch

        from vlp_gym.frames.resize import resize_frames

        self.frames.append(resize_frames(torch.from_numpy(frame)[None], (self.size, self.size))[0].numpy())
        self.positions.append(camera_positions(self.env, self.observations[-1]))
        self.rows.append((len(self.rewards), self.rewards[-1] if self.rewards else 0.0, success))

    def trajectory(self, *, task: str, tier: str, seed: int, camera: str, stride: int, varied: bool) -> Trajectory:
        """What was recorded, with the task's sentences; arguments as in `Trajectory`."""
        step, reward, success = zip(*self.rows, strict=True)
        made = Trajectory(
            task=task,
            tier=tier,
            seed=seed,
            camera=camera,
            stride=stride,
            varied=varied,
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
    """Hand and object, float32 ``[2, 3]``, in the frame of the rendering camera: right, up and backwards, metres."""
    points = np.stack([observation[HAND], observation[OBJECT]])
    camera, data = env.unwrapped.model.camera(env.unwrapped.camera_name).id, env.unwrapped.data
    return ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).astype(np.float32)
