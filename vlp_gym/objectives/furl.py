"""FuRL's ranking losses (Fu et al. 2024) for fine-tuning a reward on the agent's frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def goal_ranking_loss(
    values: Tensor, distances: Tensor, *, margin: float = 0.1, distance_margin: float = 0.25
) -> Tensor:
    """Before the first success: rank frames nearer to the goal image higher.

    ``mean_i sum_j [d_i < d_j - distance_margin] * max(0, margin - (v_i - v_j))``.

    Args:
        values: v, rewards of N frames, float ``[N]``.
        distances: d, embedding distances of the frames to the goal image, float ``[N]``.
        margin: required difference of values.
        distance_margin: pairs whose distances differ by less are ignored.

    Returns:
        A scalar, 0 if no pair counts.
    """
    nearer = distances[:, None] < distances[None, :] - distance_margin
    short = F.relu(margin - (values[:, None] - values[None, :]))
    return (short * nearer).sum(1).mean()


def success_ranking_loss(positive: Tensor, negative: Tensor | None, lagged: Tensor, *, margin: float = 0.1) -> Tensor:
    """After the first success: rank frames on the way to success above failures, and later ones above earlier ones.

    ``mean max(0, margin - (positive - negative)) + mean max(0, margin - (positive - lagged))``. The authors' code omits
    the margin from the sum but not from the condition, which gives the same gradient.

    Args:
        positive: values of frames of successful episodes, up to the success, float ``[N]``.
        negative: values of frames of failed episodes, float ``[N]``; None if there is none yet.
        lagged: values of the frames some steps before the positive ones, float ``[N]``.
        margin: required difference of values.

    Returns:
        A scalar.
    """
    loss = F.relu(margin - (positive - lagged)).mean()
    return loss if negative is None else loss + F.relu(margin - (positive - negative)).mean()
