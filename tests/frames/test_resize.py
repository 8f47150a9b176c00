"""One resize for collection, training and use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.frames.resize import resize_frames


def frames(height=32, width=48):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8))


def test_the_right_size_is_left_alone():
    given = frames()
    assert resize_frames(given, (32, 48)) is given


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (64, 96), (20, 31)])
def test_shape_and_kind(size):
    resized = resize_frames(frames(), size)
    assert resized.shape == (3, *size, 3)
    assert resized.dtype == torch.uint8


def test_halving_averages_with_a_triangle():
    """Antialiased bilinear at half size weighs the four nearest pixels of a line 1:3:3:1."""
    line = np.random.default_rng(1).integers(0, 256, 16).astype(np.uint8)
    picture = np.broadcast_to(line[None, None, :, None], (1, 16, 16, 3)).copy()
    resized = resize_frames(torch.from_numpy(picture), (8, 8))[0].numpy().astype(float)
    weights = np.array([1, 3, 3, 1]) / 8
    expected = [weights @ line[2 * i - 1 : 2 * i + 3] for i in range(1, 7)]
    assert np.abs(resized[:, 1:7] - np.array(expected)[None, :, None]).max() <= 1  # uint8 arithmetic rounds twice


def test_the_float_path_of_a_gpu_agrees():
    """PyTorch resizes uint8 on the CPU only; what a GPU gets differs by rounding."""
    given = frames(64, 64)
    floats = torch.nn.functional.interpolate(
        given.permute(0, 3, 1, 2).float(), size=(20, 20), mode="bilinear", antialias=True
    )
    gap = floats.permute(0, 2, 3, 1).round() - resize_frames(given, (20, 20)).float()
    assert gap.abs().max() <= 1


def test_frames_are_apart():
    given = frames()
    alone = torch.cat([resize_frames(frame[None], (16, 16)) for frame in given])
    assert torch.equal(alone, resize_frames(given, (16, 16)))
