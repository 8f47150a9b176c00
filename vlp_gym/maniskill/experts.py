"""Experts of the ManiSkill tasks: ManiSkill's own motion planners (`mplib`), and one of ours."""

from __future__ import annotations

import contextlib
import re
from importlib import import_module
from io import StringIO
from typing import Any

import gymnasium as gym
import numpy as np

SOLUTIONS = "mani_skill.examples.motionplanning.panda.solutions"
UP = np.array([0.0, 0.0, 0.06])  # metres
TAIL = 0.08  # metres behind the peg's middle where the hand grasps it: the target may be as far as the arm reaches
BEHIND = 0.04  # metres between peg and cube before the push


def solve(task: str, env: gym.Env, seed: int) -> None:
    """Reset the environment with this seed and do the task, all of it in `env.step`; it may fail.

    Args:
        task: a name of `TASKS`.
        env: from `make_maniskill`, or a wrapper of it.
        seed: seed of the episode.
    """
    expert = poke_cube
    if task != "PokeCube":
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", task).lower()
        expert = import_module(f"{SOLUTIONS}.{snake}").solve
    with contextlib.redirect_stdout(StringIO()):  # planners print that they found no way
        expert(env, seed=seed, debug=False, vis=False)


def poke_cube(env: gym.Env, *, seed: int, debug: bool, vis: bool) -> None:
    """Grasp the peg, take it behind the cube, and push the cube to the target; as ManiSkill's own, which lack it."""
    import sapien
    from mani_skill.examples.motionplanning.panda.motionplanner import PandaArmMotionPlanningSolver

    env.reset(seed=seed)
    base: Any = env.unwrapped
    planner = PandaArmMotionPlanningSolver(
        env, debug=debug, vis=vis, base_pose=base.agent.robot.pose, visualize_target_grasp_pose=False,
        print_env_info=False,
    )  # fmt: skip
    peg, cube, goal = (part.pose.sp.p for part in (base.peg, base.cube, base.goal_region))
    across = np.sign(base.agent.tcp.pose.sp.to_transformation_matrix()[1, 1])  # as the fingers are: no half turn
    grasp = base.agent.build_grasp_pose(np.array([0.0, 0.0, -1.0]), np.array([0.0, across, 0.0]), peg)
    held = peg - [TAIL, 0.0, 0.0]
    length = TAIL + base.peg_half_length + base.cube_half_size
    behind = np.array([cube[0] - length - BEHIND, cube[1], peg[2] + 0.005])
    for place in (held + UP, held):
        planner.move_to_pose_with_screw(sapien.Pose(place, grasp.q))
    planner.close_gripper()
    for place in (held + UP, behind + UP, behind, [goal[0] - length, *behind[1:]]):
        planner.move_to_pose_with_screw(sapien.Pose(place, grasp.q))
    planner.close()
