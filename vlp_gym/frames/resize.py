"""Resizing of frames, the same in collection, training and inference."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 frames ``[N, H, W, 3]`` to uint8 ``[N, *size, 3]``, bilinear and antialiased, on their device."""
    if tuple(frames.shape[1:3]) == tuple(size):
        return frames
    channels_first = frames.permute(0, 3, 1, 2)
    if frames.device.type != "cpu":  # PyTorch resizes uint8 on the CPU only
        channels_first = channels_first.float()
    resized = F.interpolate(channels_first, size=size, mode="bilinear", antialias=True)
    return (
        resized.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        if resized.is_floating_point()
        else resized.permute(0, 2, 3, 1)
    )


def squares(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`resize_frames` of an array to squares, uint8 ``[N, size, size, 3]``."""
    resized: NDArray[np.uint8] = resize_frames(torch.from_numpy(np.array(frames)), (size, size)).numpy()
    return resized
