"""TCN: frames near in time have near embeddings, frames further apart and frames of other videos do not."""

from __future__ import annotations

import torch
from torch import Tensor


def tcn_loss(first: Tensor, middle: Tensor, last: Tensor, others: Tensor) -> Tensor:
    """Time contrast of i < j < k ("Revisiting the learning objectives", eq. 1), S the cosine.

    ``-log e^S(z_i, z_j) / (e^S(z_i, z_j) + e^S(z_i, z_k) + sum over others of e^S(z_i, z_i'))``.

    Args:
        first: embeddings z_i, unit length, float ``[B, E]``.
        middle: z_j, likewise.
        last: z_k, likewise.
        others: int64 ``[B, N]``, for each row the rows that give its negatives; never the row itself.

    Returns:
        The mean over the batch, a scalar.
    """
    positive = (first * middle).sum(-1)
    later = (first * last).sum(-1)
    foreign = (first[:, None] * first[others]).sum(-1)
    return contrast(positive, torch.cat([later[:, None], foreign], 1))


def contrast(positive: Tensor, negatives: Tensor) -> Tensor:
    """``-log e^p / (e^p + sum e^n)``, the mean over B similarities ``[B]`` against ``[B, N]`` others."""
    against = torch.cat([positive[:, None], negatives], 1).logsumexp(1)
    return (against - positive).mean()
