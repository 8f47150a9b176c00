"""Frames in shared memory: each in its slot, and no file, descriptor or torch left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from painted import belongings

from vlp_gym.errors import FrameError
from vlp_gym.frames.resize import resize_frames
from vlp_gym.testing import FaultyEnv, PaintedEnv
from vlp_gym.wrappers.capture import RESET_FRAME, STEP_FRAME, FrameBlock, FrameCapture, capture_frames, frame_file

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def attach(env, every=1, shape=(1, 1, 8, 8)):
    with frame_file(shape) as path:
        block = FrameBlock(path, shape)
        env.attach_frames(path, shape, every)
    return block


def painted(env, episode, step):
    twin = PaintedEnv(env=env)
    twin.episode, twin.elapsed = episode, step
    return twin.render()


def test_step_and_reset_have_a_slot_each():
    env = FrameCapture(PaintedEnv([2]))
    assert env.frame_shape() is None
    env.reset()
    assert env.frame_shape() == (1, 8, 8)
    block = attach(env)
    assert block.events.tolist() == [[0, 0, 1]]
    assert (block.frames[0, RESET_FRAME, 0] == painted(0, 0, 0)).all()
    block.events[:] = 0
    env.step(0)
    assert block.events.tolist() == [[1, 1, 0]]
    block.events[:] = 0
    env.step(0)
    env.reset()
    assert block.events.tolist() == [[2, 1, 1]]
    assert (block.frames[0, STEP_FRAME, 0] == painted(0, 0, 2)).all()
    assert (block.frames[0, RESET_FRAME, 0] == painted(0, 1, 0)).all()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_steps_that_are_not_due_are_not_rendered(every):
    rendered = []

    def camera(env):
        rendered.append(env.unwrapped.elapsed)
        return env.unwrapped.render()

    env = FrameCapture(PaintedEnv([5, 4]), render_fn=camera)
    env.reset()
    attach(env, every)
    for _ in range(5):
        env.step(0)
    env.reset()
    for _ in range(4):
        env.step(0)
    assert rendered == [step for last in (5, 4) for step in range(last + 1) if step % every == 0 or step == last]


def test_nobody_looks_and_nothing_is_rendered_in_a_step():
    env = FrameCapture(PaintedEnv(), render_fn=lambda env: env.unwrapped.render())
    env.reset()
    env._cameras = []
    env.step(0)


@pytest.mark.parametrize("fault", ["none", "chw", "float", "huge"])
def test_a_wrong_frame_names_its_step(fault):
    env = FrameCapture(FaultyEnv(fault), 3)
    env.reset()
    attach(env, shape=(4, 1, 8, 8))
    env.step(0)
    with pytest.raises(FrameError, match=r" \(env 3, episode 0, step 2\)$"):
        env.step(0)


@pytest.mark.parametrize(("fault", "at"), [("reset_raises", 0), ("step_raises", 2), ("render_raises", 2)])
def test_the_environments_own_errors_get_a_note(fault, at):
    env = FrameCapture(FaultyEnv(fault, at), 3)
    with pytest.raises(OSError) as caught:  # noqa: PT012 (at the reset or at the second step)
        env.reset()
        attach(env, shape=(4, 1, 8, 8))
        for _ in range(2):
            env.step(0)
    assert caught.value.__notes__ == [f"in the environment under capture_frames (env 3, episode 0, step {at})"]


def test_a_frame_of_another_size_is_resized_with_one_warning():
    env = FrameCapture(FaultyEnv("resized", 1))
    env.reset()
    block = attach(env)
    message = "the frame size changed from (8, 8) to (16, 16); frames are resized to (8, 8) from now on"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        env.step(0)
    large = np.repeat(np.repeat(painted(0, 0, 1), 2, axis=0), 2, axis=1)
    assert (block.frames[0, STEP_FRAME, 0] == resize_frames(torch.from_numpy(large)[None], (8, 8))[0].numpy()).all()


def test_environments_of_different_sizes_share_one():
    cameras = lambda env: np.full((env.unwrapped.env + 4, 6, 3), 7, np.uint8)  # noqa: E731
    venv = SyncVectorEnv(capture_frames([partial(PaintedEnv, env=index) for index in (0, 2)], cameras))
    venv.reset()
    assert venv.call("frame_shape") == ((1, 4, 6), (1, 6, 6))
    shape = (2, 1, 4, 6)
    with frame_file(shape) as path:
        block = FrameBlock(path, shape)
        with pytest.warns(UserWarning, match=r"^the frame size changed from \(4, 6\) to \(6, 6\);"):
            venv.call("attach_frames", path, shape, 1)
    assert (block.frames[:, RESET_FRAME] == 7).all()


def test_frames_come_from_other_processes_and_leave_nothing():
    AsyncVectorEnv([PaintedEnv], context="fork").close()  # the first takes memory, which stays open
    before = belongings()
    venv = AsyncVectorEnv(capture_frames([partial(PaintedEnv, env=index) for index in (0, 1)]), context="fork")
    assert venv.call("detach_frames") == (0, 1)
    venv.reset()
    shape = (2, 1, 8, 8)
    with frame_file(shape) as path:
        block = FrameBlock(path, shape)
        venv.call("attach_frames", path, shape, 1)
        assert os.path.getsize(path) == block.events.nbytes + block.frames.nbytes
        assert os.stat(path).st_mode & 0o077 == 0  # nobody else may look
    assert not os.path.exists(path)
    venv.step(np.zeros(2, np.int64))
    for index in (0, 1):
        assert (block.frames[index, RESET_FRAME, 0] == painted(index, 0, 0)).all()
        assert (block.frames[index, STEP_FRAME, 0] == painted(index, 0, 1)).all()
    venv.close()
    del venv, block
    assert belongings() == before


def test_the_file_goes_to_the_disk_where_the_memory_is_full(monkeypatch, tmp_path):
    allocate = os.posix_fallocate
    asked = []

    def full(descriptor, offset, size):
        asked.append(os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}")))
        if asked[-1] == "/dev/shm":
            raise OSError(28, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = belongings()
    with frame_file((1, 1, 8, 8)) as path:
        assert os.path.dirname(path) == str(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    with pytest.raises(OSError, match="No space left"), frame_file((1, 1, 8, 8)):
        pass
    assert asked == ["/dev/shm", str(tmp_path), "/dev/shm"]
    assert belongings() == before
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("mode", [None, "human"])
def test_an_environment_that_does_not_render_arrays(mode):  # fault 1
    env = PaintedEnv()
    env.render_mode = mode
    message = (
        f'expected an environment made with render_mode="rgb_array", got render_mode={mode!r}; an environment that'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)} "):
        capture_frames([lambda: env])[0]()
    with pytest.raises(ValueError, match=r"^render_fn must be a function of the environment, or several, got \[\]$"):
        capture_frames([PaintedEnv], [])[0]()


def test_the_environments_own_metadata_stays_as_it_is():
    env = capture_frames([partial(gym.make, "CartPole-v1", render_mode="rgb_array")])[0]()
    assert env.metadata["vlp_gym.captured"]
    assert "vlp_gym.captured" not in env.unwrapped.metadata
    env.close()


def test_a_worker_needs_no_torch():
    code = "import sys, vlp_gym; vlp_gym.capture_frames; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
