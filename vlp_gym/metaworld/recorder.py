"""Records one Meta-World rollout: with the positions of hand and object, and the sentences of its task."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.data import recorder
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.metaworld.sentences import with_sentences

HAND, OBJECT = slice(0, 3), slice(4, 7)  # their positions in a Meta-World observation


class Recorder(recorder.Recorder):
    """Recorder of one Meta-World rollout.

    Args:
        env: environment with ``unwrapped.model``, ``data`` and ``camera_name``.
        size: side length of the stored square frames, pixels.
        observation: observation of the reset, float ``[39]``.
    """

    def __init__(self, env: Any, size: int, observation: np.ndarray) -> None:
        super().__init__(size, observation)
        self.env = env

    def positions_now(self) -> np.ndarray:
        """Hand and object, see `camera_positions`."""
        return camera_positions(self.env, self.observations[-1])

    def trajectory(self, **about: Any) -> Trajectory:
        """The recorded rollout with its task's sentences; `about`: the fields of `Trajectory` from task to varied."""
        return with_sentences(super().trajectory(**about))


def camera_positions(env: Any, observation: np.ndarray) -> np.ndarray:
    """Hand and object, float32 ``[2, 3]``, in the rendering camera's frame: right, up and backwards, metres."""
    points = np.stack([observation[HAND], observation[OBJECT]])
    camera, data = env.unwrapped.model.camera(env.unwrapped.camera_name).id, env.unwrapped.data
    return ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).astype(np.float32)
