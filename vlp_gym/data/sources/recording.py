"""A trajectory from a recording that no simulator of ours made: it has frames and a sentence, and little else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.check import check_fields, check_size
from vlp_gym.data.trajectory import NEAR_MISS, Trajectory
from vlp_gym.errors import DatasetError

LONGEST_NAME = 100  # characters of a task's name: it becomes the name of a file


def task_name(sentence: str) -> str:
    """A task's name from its sentence."""
    return " ".join(sentence.replace("/", " ").split())[:LONGEST_NAME].strip(" .")


def tier_of(success: bool) -> str:
    """The tier of a demonstration that nobody has named one for: a failure is purposeful, and misses its aim."""
    return "expert" if success else NEAR_MISS


def kept_steps(last: int, rate: float, fps: float) -> NDArray[np.int64]:
    """The states that are shown of 0 to `last`, of which `rate` come in a second: at most `fps` of them, and the last.

    >>> kept_steps(5, 25, 12.5).tolist()
    [0, 2, 4, 5]
    """
    kept = np.arange(0, last + 1, max(1, round(rate / fps)))
    return kept if kept[-1] == last else np.append(kept, last)  # it shows how it ends


def kept_rate(rate: float, fps: float) -> float:
    """How many of the states of `kept_steps` come in a second.

    >>> kept_rate(30, 12.5), kept_rate(4, 5)
    (15.0, 4.0)
    """
    return rate / max(1, round(rate / fps))


def make_trajectory(
    frames: NDArray[np.uint8],
    *,
    task: str,
    tier: str,
    sentences: Sequence[str],
    success: NDArray[np.bool_],
    size: int,
    camera: str,
    seed: int,
    step: NDArray[np.int64] | None = None,
    reward: NDArray[np.float32] | None = None,
    **more: Any,
) -> Trajectory:
    """A checked trajectory with square frames.

    Args:
        frames: uint8 ``[F, H, W, 3]``, F >= 2.
        task: its name.
        tier: see `Trajectory`.
        sentences: descriptions of the task, the canonical one first.
        success: bool ``[F]``.
        size: side of the square frames, pixels.
        camera: name of the camera.
        seed: a number that tells recordings of one task apart.
        step: time step of each frame, int64 ``[F]``; None: 0 to F - 1.
        reward: float32 ``[S]`` of steps 1 to S; None: unknown, 0.
        more: further fields of `Trajectory`.

    Raises:
        DatasetError: it is too short, or breaks the contract of `Trajectory`.
    """
    from vlp_gym.frames.resize import squares

    if len(frames) < 2:
        raise DatasetError(f"expected at least 2 frames, got {len(frames)}: the recording is too short")
    step = np.arange(len(frames)) if step is None else step
    reward = np.zeros(int(step[-1]), np.float32) if reward is None else reward
    fields: dict[str, Any] = {
        "task": task,
        "tier": tier,
        "seed": seed,
        "camera": camera,
        "stride": max(1, int(np.median(np.diff(step)))),
        "varied": False,
        "step": step.astype(np.int64),
        "reward": np.concatenate([np.zeros(1, np.float32), reward])[step].astype(np.float32),
        "success": success,
        "episode_reward": reward.astype(np.float32),
        "positions": np.full((len(frames), 2, 3), np.nan, np.float32),
        "sentences": tuple(dict.fromkeys(sentences)),
        **more,
    }
    check_fields(fields, len(frames))
    check_size(fields, len(frames), size, size)
    return Trajectory(frames=squares(frames, size), **fields)
