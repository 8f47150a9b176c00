"""Rendered frames: who makes them, the check at the door, and the ring that owns copies of the newest ones.

Worker processes of vector environments import this file, so it imports torch only where a frame is resized: that would
cost each of them seconds and some 300 MB.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import FrameError

RenderFn: TypeAlias = Callable[[Any], "NDArray[np.uint8]"]

MAX_PIXELS = 64 * 1024 * 1024
"""The largest frame that is taken for a picture and not for a mistake."""


def check_cameras(env: Any, render_fn: RenderFn | Sequence[RenderFn] | None) -> list[RenderFn]:
    """The functions that give the views of an environment: its own ``render``, or `render_fn`.

    Raises:
        ValueError: if it does not render arrays, or `render_fn` is no function.
    """
    if render_fn is None:
        if env.render_mode != "rgb_array":
            raise ValueError(
                f'expected an environment made with render_mode="rgb_array", got render_mode={env.render_mode!r}'
            )
        return [lambda env: env.render()]
    cameras: list[Any] = list(render_fn) if isinstance(render_fn, (list, tuple)) else [render_fn]
    if not cameras or not all(callable(camera) for camera in cameras):
        raise ValueError(f"render_fn must be a function of the environment, or several, got {render_fn!r}")
    return cameras


def validate_frame(frame: object, *, where: str) -> NDArray[np.uint8]:
    """Check that `frame` is what ``render_mode="rgb_array"`` promises; nothing is guessed or converted.

    Args:
        frame: what the environment's ``render`` returned.
        where: names the env, episode and step, for the message.

    Returns:
        The same array, uint8 ``[H, W, 3]``, not copied.

    Raises:
        FrameError: if it is no array, not uint8, not ``(H, W, 3)``, empty, or larger than 64 Mpixel.
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


class FrameRing:
    """The newest frames of one environment, in one contiguous uint8 block that nobody else writes to.

    Frames are numbered from 0 at the start of each episode; a number stays valid until `capacity` newer
    frames have come.

    Args:
        capacity: how many frames are kept.
        height: H in pixels; a frame of another size is resized, with one warning in the ring's life.
        width: W in pixels.

    Example:
        >>> ring = FrameRing(2, 4, 4)
        >>> for grey in (10, 20, 30):
        ...     ring.push(np.full((4, 4, 3), grey, np.uint8))
        >>> len(ring), ring.total, ring.take([1, 2])[:, 0, 0, 0].tolist()
        (2, 3, [20, 30])
    """

    def __init__(self, capacity: int, height: int, width: int) -> None:
        if min(capacity, height, width) < 1:
            raise ValueError(f"capacity, height and width must be at least 1, got {capacity}, {height}, {width}")
        self.capacity = capacity
        self.total = 0
        """How many frames were pushed since the last `clear`."""
        self._block = np.zeros((capacity, height, width, 3), np.uint8)
        self._warned = False

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def clear(self) -> None:
        """Forget all frames: the next one pushed has number 0."""
        self.total = 0

    def push(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Copy a validated frame, uint8 ``[H, W, 3]``, into the ring; returns the ring's own, not to be kept."""
        slot = self._block[self.total % self.capacity]
        if frame.shape != slot.shape:
            if not self._warned:
                self._warned = True
                height, width = slot.shape[:2]
                warnings.warn(
                    f"the frame size changed from {(height, width)} to {frame.shape[:2]}; "
                    f"frames are resized to {(height, width)} from now on",
                    stacklevel=2,
                )
            import torch

            from vlp_gym.frames.resize import resize_frames

            frame = resize_frames(torch.from_numpy(np.ascontiguousarray(frame))[None], slot.shape[:2])[0].numpy()
        np.copyto(slot, frame)
        self.total += 1
        return slot

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of the frames with these numbers, uint8 ``[n, H, W, 3]``.

        Raises:
            IndexError: if a number has not come yet or is overwritten.
        """
        numbers = np.asarray(indices, np.int64)
        oldest = self.total - len(self)
        if np.any(numbers < oldest) or np.any(numbers >= self.total):
            raise IndexError(f"the ring holds frames {oldest} to {self.total - 1}, not {numbers.tolist()}")
        copies: NDArray[np.uint8] = self._block[numbers % self.capacity]
        return copies
