"""ReWiND's loss: the squared error of progress, whose target is 0 under a sentence of another task."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RewindLoss(NamedTuple):
    """The loss and its parts, scalars with ``total = matched + mismatched``.

    Attributes:
        total: mean squared error over all real frames.
        matched: contribution of clips under their own sentence.
        mismatched: contribution of clips under another task's sentence.
    """

    total: Tensor
    matched: Tensor
    mismatched: Tensor


def rewind_loss(progress: Tensor, target: Tensor, mask: Tensor, matched: Tensor) -> RewindLoss:
    """Squared error of progress over matched, rewound and mismatched clips (ReWiND, section 3.2).

    Args:
        progress: predicted progress, float ``[B, T]`` in [0, 1].
        target: float ``[B, T]`` in [0, 1]; ignored (taken as 0) for clips under another task's sentence.
        mask: bool ``[B, T]``, True where the frame is real; at least one True.
        matched: bool ``[B]``, False if the sentence is another task's.
    """
    own = matched[:, None]
    errors = (progress.float() - torch.where(own, target, torch.zeros_like(target))).square() * mask
    count = mask.sum()
    right, wrong = (errors * own).sum() / count, (errors * ~own).sum() / count
    return RewindLoss(right + wrong, right, wrong)
