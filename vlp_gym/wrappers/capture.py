"""Rendering inside the sub-environments of a vector environment, into memory that the main process shares.

A vector environment resets a finished sub-environment by itself, so rendered from outside, the terminal frame would be
lost. Here each sub-environment renders in its own ``step`` and ``reset``. The frames do not travel through pipes, and
nothing here imports torch: it would cost each worker process seconds and some 300 MB.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import add_note
from vlp_gym.frames.check import FrameSize, RenderFn, check_cameras, validate_frame
from vlp_gym.frames.rendering import reset_env

CAPTURED = "vlp_gym.captured"
"""Key in the metadata of an environment that went through `capture_frames`."""

STEP_FRAME, RESET_FRAME = 0, 1
"""Slots of `FrameBlock.frames`: a step that ends an episode and the reset right after it have a frame each."""

STEPPED, RENDERED, BEGUN = 0, 1, 2
"""Columns of `FrameBlock.events`."""

NOTE = "in the environment under capture_frames ({})"


def capture_frames(
    env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
    render_fn: RenderFn | Sequence[RenderFn] | None = None,
) -> list[Callable[[], gym.Env[Any, Any]]]:
    """Make the sub-environments of one vector environment render themselves, for `VLPVectorRewardWrapper` to see.

    Call it once, on all functions together, and last: no other wrapper (a time limit, a frame skip) belongs around it.

    Args:
        env_fns: functions that make environments with ``render_mode="rgb_array"``.
        render_fn: your own cameras, see `VLPRewardWrapper`.

    Returns:
        Functions for `SyncVectorEnv`, `AsyncVectorEnv`, or SB3's `DummyVecEnv` and `SubprocVecEnv`.

    Example:
        >>> from vlp_gym.testing import PaintedEnv
        >>> venv = gym.vector.SyncVectorEnv(capture_frames([PaintedEnv, PaintedEnv]))
        >>> venv.metadata[CAPTURED]
        True
    """
    return [partial(_make, env_fn, index, render_fn) for index, env_fn in enumerate(env_fns)]


def _make(env_fn: Callable[[], gym.Env[Any, Any]], index: int, render_fn: Any) -> gym.Env[Any, Any]:
    return FrameCapture(env_fn(), index, render_fn)


class FrameBlock:
    """One piece of memory that the main process and all workers share.

    Attributes:
        frames: the newest frames, uint8 ``[num_envs, 2, C, H, W, 3]``: one slot for a step, one for a reset.
        events: what happened since the main process put zeros there, int64 ``[num_envs, 3]``: the number of the step
            that was made (0: none), whether it was rendered, whether an episode was begun.

    Args:
        path: a file made by `frame_file`.
        shape: ``(num_envs, C, H, W)``.
    """

    def __init__(self, path: str, shape: Sequence[int]) -> None:
        num_envs, *views = shape
        # Plain arrays: each look into an np.memmap makes another one, which takes time.
        self.events = np.asarray(np.memmap(path, np.int64, "r+", shape=(num_envs, 3)))
        self.frames = np.asarray(np.memmap(path, np.uint8, "r+", self.events.nbytes, (num_envs, 2, *views, 3)))


@contextmanager
def frame_file(shape: Sequence[int]) -> Iterator[str]:
    """The path of a file for a `FrameBlock`, while all processes open it.

    Then it is unlinked: the memory lives as long as a process has it open, so that no death leaves a file behind.

    Args:
        shape: ``(num_envs, C, H, W)``.

    Raises:
        OSError: if there is no room, neither in memory nor on the disk.
    """
    path = _allocate(shape[0] * 3 * 8 + 2 * 3 * math.prod(shape))
    try:
        yield path
    finally:
        os.unlink(path)


def _allocate(size: int) -> str:
    folders = [folder for folder in ("/dev/shm", tempfile.gettempdir()) if os.access(folder, os.W_OK)]
    for folder in folders:
        descriptor, path = tempfile.mkstemp(prefix="vlp_gym-", dir=folder)
        try:
            os.posix_fallocate(descriptor, 0, size)  # without it, a full disk is a bus error at the first write
            return path
        except OSError:
            os.unlink(path)
            if folder == folders[-1]:
                raise
        finally:
            os.close(descriptor)
    raise OSError(f"no folder for temporary files can be written to: /dev/shm, {tempfile.gettempdir()}")


class FrameCapture(gym.Wrapper[Any, Any, Any, Any]):
    """One sub-environment that renders itself; made by `capture_frames`.

    Args:
        env: made with ``render_mode="rgb_array"``.
        index: its place in the vector environment.
        render_fn: your own cameras, see `VLPRewardWrapper`.

    Raises:
        TypeError: if it is no Gymnasium environment.
        ValueError: if it does not render arrays, or `render_fn` is no function.
    """

    def __init__(
        self, env: gym.Env[Any, Any], index: int = 0, render_fn: RenderFn | Sequence[RenderFn] | None = None
    ) -> None:
        self._cameras = check_cameras(env, render_fn)
        super().__init__(env)
        self.metadata = {**env.metadata, CAPTURED: True}
        self._index, self._episode, self._step, self._every = index, -1, 0, 1
        self._size = FrameSize()
        self._block: FrameBlock | None = None
        self._first: list[NDArray[np.uint8]] = []

    def detach_frames(self) -> int:
        """Forget the wrapper that looked at the frames before; returns the place in the vector environment."""
        self._size, self._block, self._first = FrameSize(), None, []
        return self._index

    def frame_shape(self) -> tuple[int, ...] | None:
        """``(C, H, W)``, or None before the first reset."""
        return (len(self._cameras), *self._size.height_width) if self._size.height_width else None

    def attach_frames(self, path: str, shape: Sequence[int], every: int) -> None:
        """Put the frames into shared memory from now on, and the one of the reset before too.

        Args:
            path: file of the memory, made by `frame_file`.
            shape: ``(num_envs, C, H, W)``; frames of another size are resized, with one warning.
            every: steps between two rendered frames; the last of an episode is rendered too.
        """
        self._block, self._every, self._size = FrameBlock(path, shape), every, FrameSize((shape[2], shape[3]))
        if self._first:
            for camera, frame in enumerate(self._first):
                self._block.frames[self._index, RESET_FRAME, camera] = self._size.fit(frame)
            self._block.events[self._index] = self._step, False, True
        self._first = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, and render the first frame."""
        self._episode, self._step = self._episode + 1, 0
        try:
            observation, info = reset_env(self.env, seed, options)
        except Exception as error:
            add_note(error, NOTE.format(self._where()))
            raise
        self._render(RESET_FRAME)
        if self._block is not None:
            self._block.events[self._index, BEGUN] = True
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, and render it if the step is due."""
        self._step += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            add_note(error, NOTE.format(self._where()))
            raise
        if self._block is not None:
            due = self._step % self._every == 0 or terminated or truncated  # as `RewardStream.due` has it
            if due:
                self._render(STEP_FRAME)
            self._block.events[self._index, [STEPPED, RENDERED]] = self._step, due
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the environment, and let go of the shared memory."""
        self._block = None
        super().close()

    def _where(self) -> str:
        return f"env {self._index}, episode {self._episode}, step {self._step}"

    def _render(self, slot: int) -> None:
        first: list[NDArray[np.uint8]] = []
        for number, camera in enumerate(self._cameras):
            try:
                rendered = camera(self.env)
            except Exception as error:
                add_note(error, NOTE.format(self._where()))
                raise
            frame = self._size.fit(validate_frame(rendered, where=self._where()))
            if self._block is not None:  # copied at once: the next camera may draw into the same buffer
                self._block.frames[self._index, slot, number] = frame
            elif slot == RESET_FRAME:
                first.append(frame.copy())
        self._first = first
