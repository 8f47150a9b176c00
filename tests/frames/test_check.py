from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from vlp_gym.errors import FrameError
from vlp_gym.frames.check import FrameSize, validate_frame
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


def test_the_first_frame_sets_the_size_and_is_not_copied():
    size = FrameSize()
    assert size.height_width is None
    assert size.fit(FRAME) is FRAME
    assert size.height_width == FRAME.shape[:2]
    assert FrameSize((4, 4)).height_width == (4, 4)


def test_another_size_is_resized_with_one_warning():  # fault 5
    size = FrameSize((8, 8))
    frame = np.full((16, 12, 3), 77, np.uint8)
    message = "the frame size changed from (8, 8) to (16, 12); frames are resized to (8, 8) from now on"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        size.fit(frame)
    for _ in range(2):
        fitted = size.fit(frame)  # warnings are errors here
    assert fitted.shape == (8, 8, 3)
    assert (fitted == 77).all()
    assert np.array_equal(size.fit(frame[::-1, ::-1]), fitted)  # negative strides
