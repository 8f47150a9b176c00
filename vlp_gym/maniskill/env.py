"""ManiSkill 3's tasks for vision rewards: one environment on the CPU, from a camera that sees hand and object."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.errors import MissingExtraError, import_extra
from vlp_gym.maniskill.tasks import TASKS, maniskill_task

CAMERA = "render_camera"  # ManiSkill's name of it
FIELD_OF_VIEW = 0.8  # radians
TO_OURS = np.array([1.0, -1.0, -1.0])  # OpenCV's axes point right, down and forwards


def make_maniskill(
    task: str,
    *,
    size: int = 224,
    max_episode_steps: int = 400,
    control_mode: str = "pd_joint_pos",
    reward_mode: str | None = None,
) -> gym.Env:
    """Make one ManiSkill 3 task with its dense reward, where it has one, and ``render_mode="rgb_array"``.

    The camera is nearer than ManiSkill's own, in whose pictures a cube has five pixels of 112. Physics run on the CPU;
    pictures are drawn by the GPU, or without one by Mesa's lavapipe.

    Observations are ManiSkill's "state", float32 ``[1, O]``, and actions targets of the joints and of the fingers,
    radians, as its motion planners give them, unless another `control_mode` is asked for. Everything that `step`
    returns is a tensor of one environment: ManiSkill's `CPUGymWrapper` makes it plain.

    Args:
        task: a name of `TASKS`.
        size: side length of the square frame, pixels.
        max_episode_steps: steps until truncation.
        control_mode: what actions mean, a name of ManiSkill's.
        reward_mode: which reward the environment pays, a name of ManiSkill's; None: "dense", or "sparse" for a task
            that has no dense one.

    Raises:
        ValueError: for an unknown task.
        MissingExtraError: if ManiSkill is not installed, or finds no driver to draw with.
    """
    known = TASKS[maniskill_task(task)]
    import_extra("mani_skill", "ManiSkill 3 is not installed", "maniskill")
    logging.getLogger("mani_skill").setLevel(logging.ERROR)  # it warns of its own tasks
    import mani_skill.envs  # noqa: F401
    import torch
    from mani_skill.utils import sapien_utils

    try:
        env: gym.Env = gym.make(
            f"{task}-v1",
            obs_mode="state",
            control_mode=control_mode,
            reward_mode=reward_mode or ("dense" if known.dense else "sparse"),
            render_mode="rgb_array",
            sim_backend="physx_cpu",
            render_backend="gpu" if torch.cuda.is_available() else "cpu",
            max_episode_steps=max_episode_steps,
            human_render_camera_configs={
                "pose": sapien_utils.look_at(known.eye, known.target),
                "width": size,
                "height": size,
                "fov": FIELD_OF_VIEW,
                "mount": None,
            },
        )
        env.reset(seed=0)
        env.render()
    except RuntimeError as error:
        raise MissingExtraError(
            f"ManiSkill cannot draw ({error}): it needs a Vulkan driver, without a GPU Mesa's lavapipe, version 25 "
            "(mesa-vulkan-drivers), and VK_DRIVER_FILES with the path of its lvp_icd.json"
        ) from error
    return env


def frame_of(env: gym.Env) -> np.ndarray:
    """What the camera sees now, uint8 ``[H, W, 3]``."""
    picture: Any = env.render()
    frame: np.ndarray = picture[0].cpu().numpy()
    return frame


def positions_of(env: gym.Env, task: str) -> np.ndarray:
    """Hand and object, float32 ``[2, 3]``, as in `Trajectory.positions`."""
    base: Any = env.unwrapped
    camera = base.scene.human_render_cameras[CAMERA].camera
    world = np.stack([part.pose.p[0].cpu().numpy() for part in (base.agent.tcp, getattr(base, TASKS[task].moved))])
    extrinsic = camera.get_extrinsic_matrix()[0].cpu().numpy()
    return ((world @ extrinsic[:, :3].T + extrinsic[:, 3]) * TO_OURS).astype(np.float32)


def succeeded(env: gym.Env) -> bool:
    """Whether the task is done now."""
    base: Any = env.unwrapped
    return bool(base.evaluate()["success"])
