from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from vlp_gym.errors import FrameError
from vlp_gym.frames.check import FrameRing, validate_frame
from vlp_gym.testing import FRAME_FAULTS

FRAME = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
MESSAGES = {
    "none": "expected ndarray, got NoneType (env 0, episode 1, step 2)",
    "list": "expected ndarray, got list (env 0, episode 1, step 2)",
    "float": "expected dtype uint8 in [0, 255], got float32 (env 0, episode 1, step 2)",
    "int64": "expected dtype uint8 in [0, 255], got int64 (env 0, episode 1, step 2)",
    "bool": "expected dtype uint8 in [0, 255], got bool (env 0, episode 1, step 2)",
    "object": "expected dtype uint8 in [0, 255], got object (env 0, episode 1, step 2)",
    "chw": "expected (H, W, 3), got (3, 8, 8) (env 0, episode 1, step 2)",
    "rgba": "expected (H, W, 3), got (8, 8, 4) (env 0, episode 1, step 2)",
    "grey": "expected (H, W, 3), got (8, 8) (env 0, episode 1, step 2)",
    "empty": "expected a frame with pixels, got (0, 8, 3) (env 0, episode 1, step 2)",
    "huge": "expected at most 64 Mpixel, got (8193, 8192, 3) (env 0, episode 1, step 2)",
}


@pytest.mark.parametrize(("fault", "message"), MESSAGES.items())
def test_a_wrong_frame_is_refused(fault, message):  # faults 2, 3, 4, 6
    with pytest.raises(FrameError, match=f"^{re.escape(message)}$"):
        validate_frame(FRAME_FAULTS[fault](FRAME), where="env 0, episode 1, step 2")


def test_a_pil_image_is_refused():  # fault 2
    with pytest.raises(FrameError, match=r"^expected ndarray, got Image \(here\)$"):
        validate_frame(Image.fromarray(FRAME), where="here")


def test_a_tensor_is_refused_with_a_cure():  # what ManiSkill renders
    cure = "make it one in render_fn=, in ManiSkill with its CPUGymWrapper"
    with pytest.raises(FrameError, match=rf"^expected ndarray, got Tensor \(here\); {cure}$"):
        validate_frame(torch.from_numpy(FRAME), where="here")


def test_a_right_frame_passes_as_it_is():
    assert validate_frame(FRAME, where="here") is FRAME


def test_the_ring_keeps_the_newest_and_counts_from_the_episode_start():
    ring = FrameRing(3, 8, 8)
    for number in range(5):
        ring.push(np.full((8, 8, 3), number, np.uint8))
    assert (len(ring), ring.total) == (3, 5)
    assert ring.take(np.array([4, 2, 4]))[:, 0, 0, 0].tolist() == [4, 2, 4]
    ring.clear()
    assert (len(ring), ring.total) == (0, 0)
    ring.push(FRAME)
    assert ring.take([0]).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("number", [1, 5])
def test_a_frame_that_is_not_there(number):
    ring = FrameRing(3, 8, 8)
    for _ in range(5):
        ring.push(FRAME)
    with pytest.raises(IndexError, match=rf"^the ring holds frames 2 to 4, not \[{number}\]$"):
        ring.take([number])


def test_the_ring_owns_its_copies():  # faults 7, 28
    ring = FrameRing(2, 8, 8)
    frame = FRAME.copy()
    ring.push(frame[::-1, ::-1])
    frame[:] = 0
    taken = ring.take([0])
    assert np.array_equal(taken[0], FRAME[::-1, ::-1])
    taken[:] = 0
    assert np.array_equal(ring.take([0])[0], FRAME[::-1, ::-1])


def test_another_size_is_resized_with_one_warning():  # fault 5
    ring = FrameRing(2, 8, 8)
    frame = np.full((16, 12, 3), 77, np.uint8)
    message = "the frame size changed from (8, 8) to (16, 12); frames are resized to (8, 8) from now on"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        ring.push(frame)
    for _ in range(2):
        ring.push(frame)  # warnings are errors here
    assert (ring.take([2]) == 77).all()


def test_a_ring_of_nothing():
    with pytest.raises(ValueError, match=r"^capacity, height and width must be at least 1, got 0, 8, 8$"):
        FrameRing(0, 8, 8)
