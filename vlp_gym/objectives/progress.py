"""Losses for per-frame progress: cross-entropy with labels in [0, 1], and ranking by a value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def progress_loss(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of sigmoid(logits) against progress labels; NaN labels are ignored.

    Args:
        logits: float, any shape.
        target: float in [0, 1] or NaN, the same shape.
        weight: of each label, float, the same shape; None: 1.

    Returns:
        The weighted mean over the known labels, a scalar; 0 if there is none.
    """
    known = (~target.isnan()).to(logits.dtype)
    if weight is not None:
        known = known * weight
    losses = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def pairwise_ranking_loss(logits: Tensor, value: Tensor, *, margin: float) -> Tensor:
    """Bradley-Terry over all pairs of a group whose values differ by more than `margin`.

    Args:
        logits: scores of N items in each of G groups, float ``[G, N]``.
        value: what orders the items, float ``[G, N]``; NaN excludes an item.
        margin: pairs whose values differ by less are ignored.

    Returns:
        The mean over those pairs, a scalar; 0 if there is none.
    """
    difference = value[:, :, None] - value[:, None, :]
    pairs = difference > margin  # NaN compares False
    losses = F.softplus(-(logits[:, :, None] - logits[:, None, :]))
    return torch.where(pairs, losses, losses.new_zeros(())).sum() / pairs.sum().clamp(min=1)
