"""Random camera pose, light and colours of a MuJoCo scene, so that models do not overfit to one appearance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def vary_scene(env: Any, rng: np.random.Generator) -> Callable[[], None]:
    """Change the rendered camera, the lights and the colours of a MuJoCo environment in place.

    Args:
        env: an environment with ``unwrapped.model`` and ``unwrapped.camera_name``.
        rng: source of all random draws.

    Returns:
        A function that restores the scene.
    """
    import mujoco

    model, data = env.unwrapped.model, env.unwrapped.data
    headlight = model.vis.headlight
    fields = ("cam_pos", "cam_quat", "cam_fovy", "light_diffuse", "light_pos", "geom_rgba", "mat_rgba")
    changed = [*(getattr(model, name) for name in fields), headlight.ambient, headlight.diffuse]
    before = [array.copy() for array in changed]

    camera = model.camera(env.unwrapped.camera_name).id
    model.cam_pos[camera] += rng.uniform(-0.08, 0.08, 3)
    turn = np.empty(4)
    mujoco.mju_euler2Quat(turn, rng.uniform(-0.06, 0.06, 3), "xyz")
    mujoco.mju_mulQuat(turn, model.cam_quat[camera].copy(), turn)
    model.cam_quat[camera] = turn
    model.cam_fovy[camera] *= rng.uniform(0.9, 1.1)
    headlight.ambient[:] *= rng.uniform(0.6, 1.4)
    headlight.diffuse[:] *= rng.uniform(0.6, 1.4)
    model.light_diffuse[:] *= rng.uniform(0.4, 1.4, (model.nlight, 1))
    model.light_pos[:] += rng.uniform(-0.5, 0.5, (model.nlight, 3))
    for colours in (model.geom_rgba, model.mat_rgba):
        tint = rng.uniform(0.55, 1.3, (len(colours), 3))
        replaced = rng.random(len(colours)) < 0.25
        colours[:, :3] = np.clip(colours[:, :3] * tint, 0, 1)
        colours[replaced, :3] = rng.uniform(0.05, 0.95, (int(replaced.sum()), 3))
    mujoco.mj_forward(model, data)

    def restore() -> None:
        for array, value in zip(changed, before, strict=True):
            array[:] = value
        mujoco.mj_forward(model, data)

    return restore
