"""Image preprocessing for published encoders: resize, crop, scale.

Frames are uint8 ``[N, H, W, 3]``, or TypeError is raised; they are moved to the device as bytes, and become float32
pictures ``[N, 3, H, W]`` in [0, 1] there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def square_pictures(frames: Tensor, size: tuple[int, int], device: torch.device, mode: str = "bicubic") -> Tensor:
    """Resize whole frames to (H, W) pixels, antialiased; no crop, as the object may be at the edge.

    `mode` is "bicubic" or "bilinear".
    """
    pictures = _channels_first(frames, device)
    if pictures.shape[-2:] != size:
        pictures = F.interpolate(pictures, size, mode=mode, antialias=True, align_corners=False)
        pictures = pictures.clamp(0, 1)  # bicubic overshoots at edges
    return pictures


def cropped_pictures(frames: Tensor, resize: int, crop: int, device: torch.device, *, antialias: bool = True) -> Tensor:
    """Resize the shorter side, bilinear, and crop the centre square.

    Frames of ``crop`` x ``crop`` count as already cropped, as in R3M's and VIP's code.

    Args:
        frames: uint8 ``[N, H, W, 3]``.
        resize: length of the shorter side after the resize, in pixels, at least `crop`.
        crop: side of the square, in pixels.
        device: device of the result.
        antialias: average over the pixels that a smaller picture leaves out.
    """
    pictures = _channels_first(frames, device)
    height, width = pictures.shape[-2:]
    if (height, width) == (crop, crop):
        return pictures
    shorter = min(height, width)
    height, width = int(resize * height / shorter), int(resize * width / shorter)
    pictures = F.interpolate(pictures, (height, width), mode="bilinear", antialias=antialias, align_corners=False)
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return pictures[..., top : top + crop, left : left + crop]


def per_channel(values: Sequence[float]) -> Tensor:
    """Three numbers as float ``[1, 3, 1, 1]``, such as a mean for normalisation."""
    return torch.tensor(values).view(1, 3, 1, 1)


def _channels_first(frames: Tensor, device: torch.device) -> Tensor:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return frames.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def square(frame_size: int | tuple[int, int]) -> tuple[int, int]:
    """Check a size and return it as (H, W) in pixels; one number means a square.

    >>> square(224)
    (224, 224)
    """
    height, width = (frame_size, frame_size) if isinstance(frame_size, int) else frame_size
    if height < 1 or width < 1:
        raise ValueError(f"frame_size must be at least 1 pixel, got {frame_size}")
    return int(height), int(width)
