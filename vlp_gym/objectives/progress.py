"""Losses for per-frame progress: cross-entropy with labels in [0, 1], ranking by a value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def progress_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(logits) against progress in [0, 1] (SPUR, ReWiND); NaN targets are left out.

    Args:
        logits: float, any shape.
        target: float in [0, 1] or NaN, the same shape.

    Returns:
        The mean over the targets that are there, a scalar; 0 if there is none.
    """
    known = ~target.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def pairwise_ranking_loss(logits: Tensor, value: Tensor, *, margin: float) -> Tensor:
    """Bradley-Terry over every pair of a group whose values differ by more than `margin`.

    Args:
        logits: ``[G, N]``, scores of N items in each of G groups.
        value: ``[G, N]``, what orders them; NaN leaves an item out.
        margin: smallest difference in value that says anything.

    Returns:
        The mean over those pairs, a scalar; 0 if there is none.
    """
    difference = value[:, :, None] - value[:, None, :]
    pairs = difference > margin  # NaN compares False
    losses = F.softplus(-(logits[:, :, None] - logits[:, None, :]))
    return torch.where(pairs, losses, losses.new_zeros(())).sum() / pairs.sum().clamp(min=1)
