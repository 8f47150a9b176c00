"""Meta-World v3 made ready for vision rewards: the right camera, upright, fast, seeded and true resets."""

from __future__ import annotations

import difflib
from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.errors import MissingExtraError
from vlp_gym.frames.rendering import FastRender, Quality, choose_gl_backend, roll_camera
from vlp_gym.metaworld.instructions import full_name

CAMERA = "corner2"
CAMERA_POSITION = (0.75, 0.075, 0.7)  # nearer than Meta-World's own: gripper and object fill the picture


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
) -> gym.Env:
    """Make one Meta-World task, with ``render_mode="rgb_array"``.

    Observations are float64 ``[39]``, actions float32 ``[4]`` in [-1, 1], the env's own reward is in [0, 10], and
    ``info["success"]`` is 0.0 or 1.0. `terminated` is never True unless `terminate_on_success`.

    Args:
        task: such as "button-press-v3"; the suffix may be left out.
        seed: chooses the 50 object placements of the benchmark and the first episode's.
        size: of the square picture, in pixels.
        camera: "corner2" (moved nearer, the usual camera of vision-reward papers), "corner", "corner3", "corner4",
            "topview", "behindGripper" or "gripperPOV"; the corner cameras are turned upright.
        quality: of the rendering, "fast" or "default" (see `vlp_gym.frames.rendering`).
        max_episode_steps: 1 to 500; then `truncated` is True.
        terminate_on_success: end the episode at the first success.

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
        disable_env_checker=True,  # its observations leave their declared bounds by design, and it warns at each step
    )
    try:
        model = env.unwrapped.model  # type: ignore[attr-defined]
        if camera.startswith("corner"):
            roll_camera(model, camera, 180)
        if camera == CAMERA:
            model.camera(CAMERA).pos[:] = CAMERA_POSITION
        return FastRender(SeededReset(env, seed), size, size, camera, quality)
    except BaseException:
        env.close()
        raise


class SeededReset(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Makes ``reset(seed=s)`` choose the object placement too, and what a reset shows true.

    Meta-World draws the placement before it seeds itself. And it puts some objects (window-close's window) in their
    place without computing what follows: until the first step, picture and observation would show them elsewhere.
    """

    def __init__(self, env: gym.Env, seed: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, seed=seed)
        super().__init__(env)
        self._first_seed: int | None = seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; with a seed, everything that follows is determined by it and by the constructor's seed."""
        import mujoco

        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        sawyer: Any = self.env.unwrapped
        if seed is not None:
            sawyer.np_random = np.random.default_rng(seed)
        _, info = self.env.reset(seed=seed, options=options)
        mujoco.mj_forward(sawyer.model, sawyer.data)
        sawyer._prev_obs = sawyer._get_curr_obs_combined_no_goal()
        return sawyer._get_obs(), info  # none of the wrappers below changes observations


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
    try:
        import metaworld
        import metaworld.env_dict
    except ImportError as error:
        raise MissingExtraError('Meta-World is not installed: pip install "vlp_gym[metaworld]"') from error
    return metaworld
