"""Meta-World v3 for vision rewards: upright camera, fast rendering, seeded and consistent resets."""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.errors import import_extra
from vlp_gym.frames.gl import choose_gl_backend
from vlp_gym.frames.rendering import FastRender, Quality, roll_camera
from vlp_gym.metaworld.splits import full_name

CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)  # closer than Meta-World's own, so that gripper and object fill the frame
HAND_REACH = np.array([0.25, 0.15, 0.2])  # metres on each side of the usual start, see `SeededReset`
HAND_DRAWS = 20  # attempts to find a free random start
TOLERANCE = 0.02  # metres; a hand or object farther from its place was blocked or pushed
OBJECTS = slice(4, 18)  # their positions and quaternions in an observation


def metaworld_tasks() -> tuple[str, ...]:
    """The names of all 50 tasks, "assembly-v3" to "window-close-v3", sorted."""
    return tuple(sorted(_import_metaworld().env_dict.ALL_V3_ENVIRONMENTS))


def make_metaworld(
    task: str,
    *,
    seed: int = 0,
    size: int = 224,
    camera: str = CAMERA,
    quality: Quality = "fast",
    max_episode_steps: int = 500,
    terminate_on_success: bool = False,
    random_start: bool = False,
) -> gym.Env:
    """Make one Meta-World task, with ``render_mode="rgb_array"``.

    Observations are float64 ``[39]``, actions float32 ``[4]`` in [-1, 1], the env's own reward is in [0, 10], and
    ``info["success"]`` is 0.0 or 1.0. `terminated` is never True unless `terminate_on_success`.

    Args:
        task: task such as "button-press-v3"; the suffix may be omitted.
        seed: seeds the benchmark's 50 object placements and the first episode.
        size: side length of the square frame, pixels.
        camera: "corner2" (moved nearer, the usual camera of vision-reward papers), "corner", "corner3", "corner4",
            "topview", "behindGripper" or "gripperPOV"; the corner cameras are turned upright.
        quality: rendering quality, "fast" or "default" (see `vlp_gym.frames.rendering`).
        max_episode_steps: steps until truncation, 1 to 500.
        terminate_on_success: end the episode at the first success.
        random_start: start the hand at a random position, see `SeededReset`; object placements do not change.

    Raises:
        ValueError: for an unknown task.
        MissingExtraError: if metaworld is not installed.
    """
    task = _full_name(task)
    if not 1 <= max_episode_steps <= 500:
        raise ValueError(f"max_episode_steps: expected 1 to 500 (Meta-World's own limit), got {max_episode_steps}")
    env = gym.make(
        "Meta-World/MT1",
        env_name=task,
        seed=seed,
        max_episode_steps=max_episode_steps,
        terminate_on_success=terminate_on_success,
        render_mode="rgb_array",
        camera_name=camera,
        width=size,
        height=size,
        disable_env_checker=True,  # observations leave their declared bounds by design; it would warn at each step
    )
    try:
        model = env.unwrapped.model  # type: ignore[attr-defined]
        if camera.startswith("corner"):
            roll_camera(model, camera, 180)
        if camera == CAMERA:
            model.camera(CAMERA).pos[:] = CAMERA_POSITION
        return FastRender(SeededReset(env, seed, random_start), size, size, camera, quality)
    except BaseException:
        env.close()
        raise


class SeededReset(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Makes ``reset(seed=s)`` determine the object placement, and updates frame and observation at a reset.

    Meta-World draws the placement before it seeds itself. It also moves some objects (window-close's window) without
    updating the physics state, so that frame and observation show them elsewhere until the first step.

    Args:
        env: a Meta-World environment.
        seed: seeds the first episode if its reset passes no seed.
        random_start: start the hand uniformly within `HAND_REACH` of its usual position, inside the workspace, as in
            the code of "Contrastive preference learning". Unlike there, redraw if the hand does not reach the position,
            or pushes or touches something.
    """

    def __init__(self, env: gym.Env, seed: int, random_start: bool = False) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, seed=seed, random_start=random_start)
        super().__init__(env)
        self._first_seed: int | None = seed
        self._random_start = random_start
        self._hand_rng = np.random.default_rng()
        self._usual_hand = np.array(env.unwrapped.hand_init_pos)  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; a given seed and the constructor's seed determine everything that follows."""
        import mujoco

        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        sawyer: Any = self.env.unwrapped
        if seed is not None:
            sawyer.np_random = np.random.default_rng(seed)
            self._hand_rng = np.random.default_rng([seed, 1])  # separate, so that the same seed gives the same objects
        sawyer.hand_init_pos = self._usual_hand.copy()
        _, info = self.env.reset(seed=seed, options=options)
        mujoco.mj_forward(sawyer.model, sawyer.data)
        if self._random_start:
            self._move_hand(sawyer)
        sawyer._prev_obs = sawyer._get_curr_obs_combined_no_goal()
        return sawyer._get_obs(), info  # no inner wrapper changes observations

    def _move_hand(self, sawyer: Any) -> None:
        """Restart the episode with the hand at a random free position; after `HAND_DRAWS` attempts, at the last one."""
        import mujoco

        objects = sawyer._get_curr_obs_combined_no_goal()[OBJECTS]
        for _ in range(HAND_DRAWS):
            hand = self._usual_hand + self._hand_rng.uniform(-HAND_REACH, HAND_REACH)
            sawyer.hand_init_pos = np.clip(hand, sawyer.mocap_low, sawyer.mocap_high)
            sawyer.reset()  # moves there in 50 steps and derives the reward's margins from it
            mujoco.mj_forward(sawyer.model, sawyer.data)
            seen = sawyer._get_curr_obs_combined_no_goal()
            arrived = np.linalg.norm(seen[:3] - sawyer.hand_init_pos) < TOLERANCE
            if arrived and np.allclose(seen[OBJECTS], objects, atol=TOLERANCE) and not _robot_touches(sawyer):
                break


def _robot_touches(sawyer: Any) -> bool:
    """Whether the robot touches anything except itself."""
    model, contacts = sawyer.model, sawyer.data.contact[: sawyer.data.ncon]
    geoms = np.array([contact.geom for contact in contacts], int).reshape(-1, 2)
    of_robot = model.body_rootid[model.geom_bodyid[geoms]] == model.body_rootid[model.body("hand").id]
    return bool((of_robot.sum(1) == 1).any())


def scripted_policy(task: str) -> Any:
    """Meta-World's scripted expert for a task: an object with ``get_action(observation) -> action``.

    Raises:
        ValueError: for an unknown task.
    """
    task = _full_name(task)
    from metaworld.policies import ENV_POLICY_MAP

    policies: dict[str, Any] = ENV_POLICY_MAP
    return policies[task]()


def _full_name(task: str) -> str:
    task = full_name(task)
    names = metaworld_tasks()
    if task not in names:
        near = difflib.get_close_matches(task, names, n=3) or list(names[:3])
        raise ValueError(f"task: expected a Meta-World v3 task such as {', '.join(near)}; got {task!r}")
    return task


def _import_metaworld() -> Any:
    choose_gl_backend()
    # Its scripted policies say so at nearly every step, by design.
    warnings.filterwarnings("ignore", r"Constant\(s\) may be too high", module=r"metaworld\.policies\.policy")
    import_extra("metaworld.env_dict", "Meta-World is not installed", "metaworld")
    return import_extra("metaworld", "Meta-World is not installed", "metaworld")
