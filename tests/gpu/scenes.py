"""Rendering environments, best first; made in worker processes, so that nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np


class Drawn(gym.Env[Any, Any]):
    """A square that moves over noise, drawn with NumPy: for machines on which MuJoCo does not render."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's own form)
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, pixels: int) -> None:
        self.pixels, self.place = pixels, np.zeros(2, np.float32)
        self.ground = np.random.default_rng(0).integers(0, 256, (pixels, pixels, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Put the square in the middle."""
        super().reset(seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move it."""
        self.place = np.clip(self.place + 0.05 * action, -1, 1).astype(np.float32)
        return self.place, 0.0, False, False, {}

    def render(self) -> Any:
        """uint8 ``[pixels, pixels, 3]``."""
        frame = self.ground.copy()
        row, column = ((self.place + 1) / 2 * 0.9 * self.pixels).astype(int)
        frame[row : row + self.pixels // 8, column : column + self.pixels // 8] = 255, 0, 0
        return frame


class RenderedSteps(gym.Wrapper[Any, Any, Any, Any]):
    """Renders after each reset and step, and does nothing with the frames."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Reset and render."""
        answer = self.env.reset(**options)
        self.env.render()
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step and render."""
        answer = self.env.step(action)
        self.env.render()
        return answer


def make_scene(scene: str, pixels: int) -> gym.Env[Any, Any]:
    """A rendering environment.

    Args:
        scene: "metaworld", "gymnasium" (its Pusher) or "drawn"; the first two need MuJoCo and a GL driver.
        pixels: side of the frames.
    """
    if scene == "metaworld":
        from vlp_gym.metaworld.env import make_metaworld

        return make_metaworld("button-press-v3", size=pixels)
    if scene == "gymnasium":
        from vlp_gym.frames.gl import choose_gl_backend
        from vlp_gym.frames.rendering import FastRender

        choose_gl_backend()
        return FastRender(gym.make("Pusher-v5", render_mode="rgb_array", max_episode_steps=1000), pixels, pixels)
    if scene == "drawn":
        return Drawn(pixels)
    raise ValueError(f'scene: expected "metaworld", "gymnasium" or "drawn", got {scene!r}')


def make_rendered(scene: str, pixels: int) -> gym.Env[Any, Any]:
    """The same environment, rendered after each step."""
    return RenderedSteps(make_scene(scene, pixels))


def first_that_renders(scenes: Sequence[str], pixels: int) -> tuple[str, str]:
    """The first scene that gives a picture here, and why those before it do not."""
    reasons = []
    for scene in scenes:
        try:
            env = make_scene(scene, pixels)
            env.reset(seed=0)
            env.render()
            env.close()
        except Exception as error:  # the packages', MuJoCo's and GL's own
            reasons.append(f"{scene}: {type(error).__name__}: {error}")
        else:
            return scene, "; ".join(reasons)
    raise RuntimeError(f"no environment renders here ({'; '.join(reasons)})")
