"""Gymnasium-Robotics' Fetch tasks for vision rewards: a camera that sees block and goal, and fast rendering."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.errors import did_you_mean, import_extra
from vlp_gym.frames.gl import choose_gl_backend
from vlp_gym.frames.rendering import FastRender, Quality

TASKS = ("FetchPickAndPlace", "FetchPush", "FetchReach", "FetchSlide")
EPISODE_STEPS = 50  # Gymnasium-Robotics' own
CAMERA = "near"
_VIEW = {"distance": 1.05, "azimuth": 150.0, "elevation": -45.0, "lookat": np.array([1.33, 0.75, 0.45])}
_VIEW_OF_SLIDE = {**_VIEW, "distance": 1.15, "lookat": np.array([1.3, 0.75, 0.42])}  # its table is longer


def make_fetch(
    task: str,
    *,
    size: int = 224,
    quality: Quality = "fast",
    max_episode_steps: int = EPISODE_STEPS,
) -> gym.Env:
    """Make one Fetch task with its dense reward, with ``render_mode="rgb_array"``.

    The camera is nearer and higher than Gymnasium-Robotics' own, in whose pictures a block has two pixels of 112. The
    goal is a red ball. Observations are a dictionary of "observation" float64 ``[25]`` (``[10]`` for FetchReach),
    "achieved_goal" and "desired_goal" ``[3]``, metres. Actions are float32 ``[4]`` in [-1, 1]: hand x, y, z, fingers.
    The reward is minus the distance to the goal, metres, and ``info["is_success"]`` 0.0 or 1.0; nothing terminates.

    Args:
        task: one of `TASKS`.
        size: side length of the square frame, pixels.
        quality: rendering quality, "fast" or "default" (see `vlp_gym.frames.rendering`).
        max_episode_steps: steps until truncation.

    Raises:
        ValueError: for an unknown task.
        MissingExtraError: if gymnasium-robotics is not installed.
    """
    task = fetch_task(task)
    choose_gl_backend()
    gym.register_envs(import_extra("gymnasium_robotics", "Gymnasium-Robotics is not installed", "fetch"))
    env: Any = gym.make(
        f"{task}Dense-v4",
        max_episode_steps=max_episode_steps,
        render_mode="rgb_array",
        default_camera_config=_VIEW_OF_SLIDE if task == "FetchSlide" else _VIEW,
    )
    model = env.unwrapped.model
    # Long faint axes show where the hand is to go, and would tell a model what it does: from the first step on.
    model.geom_rgba[model.geom_bodyid == model.body("robot0:mocap").id, 3] = 0
    return FastRender(env, size, size, quality=quality)


def fetch_task(task: str) -> str:
    """The task, if it is one of `TASKS`; raises ValueError for any other."""
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}{did_you_mean(task, TASKS)}")
    return task
