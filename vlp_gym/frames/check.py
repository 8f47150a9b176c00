"""Rendered frames: the cameras, validation, and one size per environment.

Worker processes of vector environments import this file, so torch is imported only to resize a frame: it would cost
each of them seconds and about 300 MB.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import FrameError
from vlp_gym.frames.process import end_by_sigterm
from vlp_gym.frames.rendering import warn_if_upside_down

RenderFn: TypeAlias = Callable[[Any], "NDArray[np.uint8]"]

MAX_PIXELS = 64 * 1024 * 1024
"""Larger frames are taken for a mistake."""


def check_cameras(env: Any, render_fn: RenderFn | Sequence[RenderFn] | None) -> list[RenderFn]:
    """The functions that render an environment's views: its ``render``, or `render_fn`.

    Raises:
        TypeError: it is no Gymnasium environment.
        ValueError: it does not render arrays, or `render_fn` is not a function or several.
    """
    if not isinstance(env, gym.Env):
        cure = ""
        if hasattr(env, "possible_agents"):
            cure = "; it is PettingZoo's, for several agents: make a gymnasium.Env of what one agent does and sees"
        elif hasattr(env, "num_envs"):
            cure = "; vector environments have wrappers of their own, VLPVectorRewardWrapper and VLPVecReward"
        raise TypeError(f"expected a gymnasium.Env, got {type(env).__name__}{cure}")
    end_by_sigterm()
    if render_fn is None:
        if env.render_mode != "rgb_array":
            raise ValueError(
                f'expected an environment made with render_mode="rgb_array", got render_mode={env.render_mode!r}; an '
                "environment that cannot do that needs a camera of yours, such as "
                "render_fn=lambda env: env.unwrapped.camera.read()"
            )
        warn_if_upside_down(env)
        return [lambda env: env.render()]
    cameras: list[Any] = list(render_fn) if isinstance(render_fn, (list, tuple)) else [render_fn]
    if not cameras or not all(callable(camera) for camera in cameras):
        raise ValueError(f"render_fn must be a function of the environment, or several, got {render_fn!r}")
    return cameras


def validate_frame(frame: object, *, where: object) -> NDArray[np.uint8]:
    """Check that `frame` is a valid ``render_mode="rgb_array"`` frame; nothing is guessed or converted.

    Args:
        frame: return value of the environment's ``render``.
        where: environment, episode and step, for the message.

    Returns:
        The same array, uint8 ``[H, W, 3]``, not copied.

    Raises:
        FrameError: it is not an array, not uint8, not ``(H, W, 3)``, empty, or larger than 64 Mpixel.
    """
    if not isinstance(frame, np.ndarray):
        cure = "; make it one in render_fn=, in ManiSkill with its CPUGymWrapper" if hasattr(frame, "numpy") else ""
        raise FrameError(f"expected ndarray, got {type(frame).__name__} ({where}){cure}")
    if frame.dtype != np.uint8:
        raise FrameError(f"expected dtype uint8 in [0, 255], got {frame.dtype} ({where})")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise FrameError(f"expected (H, W, 3), got {frame.shape} ({where})")
    if frame.size == 0:
        raise FrameError(f"expected a frame with pixels, got {frame.shape} ({where})")
    if frame.shape[0] * frame.shape[1] > MAX_PIXELS:
        raise FrameError(f"expected at most 64 Mpixel, got {frame.shape} ({where})")
    return frame


class FrameSize:
    """The frame size of an environment, set by its first frame; others are resized to it, with one warning.

    Example:
        >>> size = FrameSize()
        >>> size.fit(np.zeros((4, 6, 3), np.uint8)).shape, size.height_width
        ((4, 6, 3), (4, 6))
    """

    def __init__(self, height_width: tuple[int, int] | None = None) -> None:
        self.height_width = height_width
        """(H, W) in pixels; None before the first frame."""
        self._warned = False

    def fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a validated uint8 frame ``[H', W', 3]`` to ``[H, W, 3]``; not copied if it has that size."""
        shape = frame.shape[:2]
        if self.height_width is None:
            self.height_width = shape
        if shape == self.height_width:
            return frame
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the frame size changed from {self.height_width} to {shape}; "
                f"frames are resized to {self.height_width} from now on",
                stacklevel=2,
            )
        import torch

        from vlp_gym.frames.resize import resize_frames

        resized: NDArray[np.uint8] = resize_frames(
            torch.from_numpy(np.ascontiguousarray(frame))[None], self.height_width
        )[0].numpy()
        return resized


class FirstEpisode:
    """Finds cameras that show nothing: an environment that does not draw off-screen gives black or unchanging frames.

    Example:
        >>> watch = FirstEpisode()
        >>> for step in range(5):
        ...     said = watch.see([np.zeros((4, 6, 3), np.uint8)], over=step == 4)
        >>> said[:51]
        'all 5 frames of the first episode are black: the en'
    """

    LEAST, MOST = 5, 1000
    """Frames before anything is said (of black ones two), and after which it is said within the episode."""

    def __init__(self) -> None:
        self.over = False
        self._count = 0
        self._first: list[NDArray[np.uint8]] = []
        self._still: list[int] = []

    def see(self, views: Sequence[NDArray[np.uint8]], *, over: bool) -> str | None:
        """What to say after the views of one moment, uint8 ``[H, W, 3]`` each; `over` ends the episode."""
        self._count += 1
        if not self._first:
            self._first, self._still = [view.copy() for view in views], list(range(len(views)))
        self._still = [camera for camera in self._still if np.array_equal(self._first[camera], views[camera])]
        return self.end() if over or not self._still or self._count == self.MOST else None

    def end(self) -> str | None:
        """What to say at the end of the episode."""
        count, cameras = self._count, len(self._first)
        found = [(camera, not self._first[camera].any()) for camera in self._still]
        self.over, self._first, self._still = True, [], []
        for camera, black in found:
            if count >= (2 if black else self.LEAST):
                of = f" of camera {camera}" if cameras > 1 else ""
                what = f"all {count} frames{of} of the first episode are {'black' if black else 'the same'}"
                return f"{what}: the environment may not draw off-screen; look at env.render(), or give a render_fn="
        return None
