"""VIP: similarity to a goal as the value function of a dual reinforcement learning problem on videos alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA = 0.98


def vip_loss(start: Tensor, current: Tensor, following: Tensor, goal: Tensor, *, gamma: float = GAMMA) -> Tensor:
    """Implicit time contrast towards a goal ("Revisiting the learning objectives", eq. 3), S the cosine.

    ``(1 - gamma) mean(-S(z_i, g)) + log mean(exp(S(z_j, g) + 1 - gamma S(z_j+1, g)))``. The 1 is the cost of each step
    before the goal. The paper does not state gamma; 0.98 is VIP's. VIP's code can add the second term also over frames
    and goals of different videos; the equation and this function do not.

    Args:
        start: frame embeddings z_i, unit length, float ``[B, E]``.
        current: z_j, j > i, unit length, float ``[B, E]``.
        following: z_j+1, the next frame, unit length, float ``[B, E]``.
        goal: g = z_k, k >= j + 1, unit length, float ``[B, E]``.
        gamma: discount, in [0, 1].

    Returns:
        A scalar.
    """
    at_start, now, after = ((frame * goal).sum(-1) for frame in (start, current, following))
    surprise = now + 1 - gamma * after
    return -(1 - gamma) * at_start.mean() + torch.logsumexp(surprise, 0) - math.log(len(surprise))
