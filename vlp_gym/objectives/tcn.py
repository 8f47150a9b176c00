"""TCN: frames near in time get similar embeddings, distant frames and frames of other videos do not."""

from __future__ import annotations

import torch
from torch import Tensor


def tcn_loss(first: Tensor, middle: Tensor, last: Tensor, others: Tensor) -> Tensor:
    """Time contrast of i < j < k ("Revisiting the learning objectives", eq. 1), S the cosine.

    ``-log e^S(z_i, z_j) / (e^S(z_i, z_j) + e^S(z_i, z_k) + sum over others of e^S(z_i, z_i'))``.

    Args:
        first: frame embeddings z_i, unit length, float ``[B, E]``.
        middle: z_j, unit length, float ``[B, E]``.
        last: z_k, unit length, float ``[B, E]``.
        others: row indices of each row's negatives, int64 ``[B, N]``; never the row itself.

    Returns:
        The mean over the batch, a scalar.
    """
    positive = (first * middle).sum(-1)
    later = (first * last).sum(-1)
    foreign = (first[:, None] * first[others]).sum(-1)
    return contrast(positive, torch.cat([later[:, None], foreign], 1))


def contrast(positive: Tensor, negatives: Tensor) -> Tensor:
    """``-log e^p / (e^p + sum e^n)``, the mean over B positives, float ``[B]``, with negatives, float ``[B, N]``."""
    against = torch.cat([positive[:, None], negatives], 1).logsumexp(1)
    return (against - positive).mean()
