"""An auxiliary loss on 3D positions, which teaches a frame encoder depth (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CENTRE = (0.0, 0.0, -1.0)  # metres in the camera's frame: 1 m in front of the lens
UNIT = 0.2  # metres
LINEAR_FROM = 0.1  # in units of 0.2 m: errors beyond 2 cm count linearly


def position_loss(predicted: Tensor, positions: Tensor) -> Tensor:
    """Smooth L1 between predicted and true positions; unknown positions are ignored.

    Args:
        predicted: float ``[..., 3]``, in units of 0.2 m from a point 1 m in front of the camera.
        positions: float ``[..., 3]``, in the camera's frame (right, up, backwards), in metres; NaN if unknown.

    Returns:
        A scalar; 0 if no position is known.
    """
    target = (positions - positions.new_tensor(CENTRE)) / UNIT
    known = ~torch.isnan(target)
    error = F.smooth_l1_loss(predicted[known], target[known], beta=LINEAR_FROM, reduction="sum")
    return error / known.sum().clamp(min=1)
