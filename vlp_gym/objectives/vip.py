"""VIP: similarity to a goal as the value function of a dual reinforcement learning problem, from videos alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA = 0.98


def vip_loss(start: Tensor, current: Tensor, following: Tensor, goal: Tensor, *, gamma: float = GAMMA) -> Tensor:
    """Implicit time contrast towards a goal ("Revisiting the learning objectives", eq. 3), S the cosine.

    ``(1 - gamma) mean(-S(z_i, g)) + log mean(exp(S(z_j, g) + 1 - gamma S(z_j+1, g)))``. The 1 is what each step short
    of the goal costs. The paper does not print its gamma; 0.98 is VIP's. VIP's own code can add the same second term
    over pairs of foreign frames and goals; the equation has none of them, nor has this.

    Args:
        start: embeddings z_i, unit length, float ``[B, E]``.
        current: z_j, j > i, likewise.
        following: z_j+1, the next frame, likewise.
        goal: g = z_k, k >= j + 1, likewise.
        gamma: discount, in [0, 1].

    Returns:
        A scalar.
    """
    at_start, now, after = ((frame * goal).sum(-1) for frame in (start, current, following))
    surprise = now + 1 - gamma * after
    return -(1 - gamma) * at_start.mean() + torch.logsumexp(surprise, 0) - math.log(len(surprise))
