"""SPUR's loss: cross-entropy of a preference between two videos, squared error of their progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SPURLoss:
    """The terms, each a scalar.

    Attributes:
        total: ``preference + progress``; the one to call ``backward`` on.
        preference: binary cross-entropy, a mean over pairs.
        progress: squared error, a mean over the frames with a target; 0 if there is none.
    """

    total: Tensor
    preference: Tensor
    progress: Tensor


def spur_loss(logit: Tensor, label: Tensor, progress: Tensor, target: Tensor) -> SPURLoss:
    """``L_preference + L_progress`` (SPUR, sections 3.2 and 3.3).

    Where the paper sums the squared errors of a video's frames, this is their mean, so that the weight of the two terms
    does not depend on the number of frames.

    Args:
        logit: of P(first > second), float ``[B]``.
        label: 1 where the first video is preferred, 0 where the second is, float ``[B]``.
        progress: predicted, in [0, 1], float of any shape.
        target: in [0, 1], or NaN where the frame has none (failed trajectories, padding), the same shape.

    Returns:
        The total and its parts.

    Raises:
        ValueError: if shapes differ; broadcasting would compare the wrong frames.
    """
    for name, given, wanted in (("label", label, logit), ("target", target, progress)):
        if given.shape != wanted.shape:
            raise ValueError(f"{name}: expected the shape {tuple(wanted.shape)}, got {tuple(given.shape)}")
    preference = F.binary_cross_entropy_with_logits(logit, label)
    known = ~target.isnan()
    errors = (progress - target.nan_to_num(0.0)).square() * known
    mean = errors.sum() / known.sum().clamp(min=1)
    return SPURLoss(preference + mean, preference, mean)
