"""ReWiND's loss: the squared error of progress, which is nothing at all under a sentence of another task."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RewindLoss(NamedTuple):
    """The loss and its parts, scalars with ``total = matched + mismatched``.

    Attributes:
        total: mean squared error over all real frames.
        matched: what clips under their own sentence add to it.
        mismatched: what clips under another task's sentence add to it.
    """

    total: Tensor
    matched: Tensor
    mismatched: Tensor


def rewind_loss(progress: Tensor, target: Tensor, mask: Tensor, matched: Tensor) -> RewindLoss:
    """Squared error of the progress (ReWiND, section 3.2: the loss of matched, rewound and mismatched clips together).

    Args:
        progress: float ``[B, T]`` in [0, 1], as predicted.
        target: float ``[B, T]`` in [0, 1]; of a clip under another task's sentence it is taken as 0.
        mask: bool ``[B, T]``, True where the frame is real; at least one is.
        matched: bool ``[B]``, False where the sentence is another task's.
    """
    own = matched[:, None]
    errors = (progress.float() - torch.where(own, target, torch.zeros_like(target))).square() * mask
    count = mask.sum()
    right, wrong = (errors * own).sum() / count, (errors * ~own).sum() / count
    return RewindLoss(right + wrong, right, wrong)
