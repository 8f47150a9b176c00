"""FuRL's ranking losses (Fu et al. 2024): which frames a fine-tuned reward must value higher than others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def goal_ranking_loss(
    values: Tensor, distances: Tensor, *, margin: float = 0.1, distance_margin: float = 0.25
) -> Tensor:
    """Before the first success: a frame that is nearer to the goal image is worth more.

    ``mean_i sum_j [d_i < d_j - distance_margin] * max(0, margin - (v_i - v_j))``.

    Args:
        values: v, what the reward says of N frames, float ``[N]``.
        distances: d, of the frames' embeddings to that of the goal image, float ``[N]``, in the embeddings' own unit.
        margin: by how much the values shall differ.
        distance_margin: pairs whose distances differ by less say nothing.

    Returns:
        A scalar, 0 where no pair says anything.
    """
    nearer = distances[:, None] < distances[None, :] - distance_margin
    short = F.relu(margin - (values[:, None] - values[None, :]))
    return (short * nearer).sum(1).mean()


def success_ranking_loss(positive: Tensor, negative: Tensor | None, lagged: Tensor, *, margin: float = 0.1) -> Tensor:
    """After the first success: on the way to success is better than failure, and later on it than earlier.

    ``mean max(0, margin - (positive - negative)) + mean max(0, margin - (positive - lagged))``. The authors' program
    leaves the margin out of the sum, not out of the condition: the gradient is the same.

    Args:
        positive: values of frames of successful episodes, up to the success, float ``[N]``.
        negative: values of frames of failed episodes, float ``[N]``; None as long as there is none.
        lagged: values of the frames that came some steps before the positive ones, float ``[N]``.
        margin: by how much the values shall differ.

    Returns:
        A scalar.
    """
    loss = F.relu(margin - (positive - lagged)).mean()
    return loss if negative is None else loss + F.relu(margin - (positive - negative)).mean()
