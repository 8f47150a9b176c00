"""Where things are in space: a second task that teaches a picture encoder depth (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CENTRE = (0.0, 0.0, -1.0)  # metres in the camera's frame: one before the lens
UNIT = 0.2  # metres
LINEAR_FROM = 0.1  # of those units: errors beyond two centimetres count linearly


def position_loss(predicted: Tensor, positions: Tensor) -> Tensor:
    """Smooth L1 between predicted and true positions; those that are not known count for nothing.

    Args:
        predicted: ``[..., 3]``, in units of 0.2 m from a point 1 m before the camera.
        positions: the same shape, in the camera's frame (right, up, backwards), metres; NaN where not known.

    Returns:
        A scalar; 0 where nothing is known.
    """
    target = (positions - positions.new_tensor(CENTRE)) / UNIT
    known = ~torch.isnan(target)
    error = F.smooth_l1_loss(predicted[known], target[known], beta=LINEAR_FROM, reduction="sum")
    return error / known.sum().clamp(min=1)
