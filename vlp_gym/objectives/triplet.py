"""The triplet loss: a later frame is nearer to the sentence than an earlier one."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 0.3


def triplet_loss(earlier: Tensor, later: Tensor, text: Tensor, *, margin: float = MARGIN) -> Tensor:
    """``max(0, cos(l, v_i) - cos(l, v_j) + margin)`` for i < j ("Revisiting the learning objectives", eq. 7).

    The paper sums over the batch; this takes the mean, like its other losses, so that the batch size does not change
    the learning rate.

    Args:
        earlier: frame embeddings v_i, unit length, float ``[B, E]``.
        later: frame embeddings v_j, unit length, float ``[B, E]``.
        text: sentence embeddings l, unit length, float ``[B, E]``.
        margin: alpha, required difference of cosines; the paper's is 0.3.

    Returns:
        The mean over the batch, a scalar.
    """
    gap = (text * earlier).sum(-1) - (text * later).sum(-1)
    return torch.relu(gap + margin).mean()
