"""Gathers one rollout, frame by frame, into a `Trajectory`."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.data.trajectory import Trajectory

HAND, OBJECT = slice(0, 3), slice(4, 7)  # where a Meta-World observation holds their positions


class Recorder:
    """One rollout of a Meta-World task; frames are resized exactly as the models resize theirs.

    Args:
        env: what is recorded, with ``unwrapped.model``, ``data`` and ``camera_name``.
        size: of the square frames that are kept, pixels.
    """

    def __init__(self, env: Any, size: int) -> None:
        self.env, self.size = env, size
        self.frames: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.rows: list[tuple[int, float, bool]] = []
        self.rewards: list[float] = []  # of every environment step

    def add(self, frame: np.ndarray, observation: np.ndarray, success: bool) -> None:
        """Keep a frame uint8 ``[H, W, 3]``, shown after as many steps as `rewards` has."""
        import torch

        from vlp_gym.frames.resize import resize_frames

        self.frames.append(resize_frames(torch.from_numpy(frame)[None], (self.size, self.size))[0].numpy())
        self.positions.append(camera_positions(self.env, observation))
        self.rows.append((len(self.rewards), self.rewards[-1] if self.rewards else 0.0, success))

    def trajectory(self, *, task: str, tier: str, seed: int, camera: str, stride: int, varied: bool) -> Trajectory:
        """What was recorded; arguments as in `Trajectory`."""
        step, reward, success = zip(*self.rows, strict=True)
        return Trajectory(
            task,
            tier,
            seed,
            camera,
            stride,
            varied,
            np.stack(self.frames),
            np.array(step, np.int64),
            np.array(reward, np.float32),
            np.array(success, bool),
            np.array(self.rewards, np.float32),
            np.stack(self.positions),
        )


def camera_positions(env: Any, observation: np.ndarray) -> np.ndarray:
    """Hand and object, float32 ``[2, 3]``, in the frame of the rendering camera: right, up and backwards, metres."""
    points = np.stack([observation[HAND], observation[OBJECT]])
    camera, data = env.unwrapped.model.camera(env.unwrapped.camera_name).id, env.unwrapped.data
    return ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).astype(np.float32)
