"""SPUR's loss: cross-entropy of the preference between two videos, and squared error of progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SPURLoss:
    """The terms, each a scalar.

    Attributes:
        total: ``preference + progress``; call ``backward`` on this.
        preference: binary cross-entropy, mean over pairs.
        progress: squared error, mean over the frames with a target; 0 if there is none.
    """

    total: Tensor
    preference: Tensor
    progress: Tensor


def spur_loss(logit: Tensor, label: Tensor, progress: Tensor, target: Tensor) -> SPURLoss:
    """``L_preference + L_progress`` (SPUR, sections 3.2 and 3.3).

    The paper sums squared errors over a video's frames; this takes their mean, so that the weight of the two terms does
    not depend on the number of frames.

    Args:
        logit: logit of P(first > second), float ``[B]``.
        label: 1 if the first video is preferred, 0 if the second is, float ``[B]``.
        progress: predicted progress, float of any shape in [0, 1].
        target: float of the same shape in [0, 1], or NaN where there is none (failed trajectories, padding).

    Returns:
        The total and its parts.

    Raises:
        ValueError: shapes differ; broadcasting would compare the wrong frames.
    """
    for name, given, wanted in (("label", label, logit), ("target", target, progress)):
        if given.shape != wanted.shape:
            raise ValueError(f"{name}: expected the shape {tuple(wanted.shape)}, got {tuple(given.shape)}")
    preference = F.binary_cross_entropy_with_logits(logit, label)
    known = ~target.isnan()
    errors = (progress - target.nan_to_num(0.0)).square() * known
    mean = errors.sum() / known.sum().clamp(min=1)
    return SPURLoss(preference + mean, preference, mean)
