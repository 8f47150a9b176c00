"""LIV's objective: VIP towards the last frame, VIP towards the sentence, and InfoNCE between the two goals."""

from __future__ import annotations

from torch import Tensor

from vlp_gym.objectives.infonce import infonce_loss
from vlp_gym.objectives.vip import GAMMA, vip_loss
from vlp_gym.objectives.vip_text import vip_text_loss


def liv_loss(
    start: Tensor,
    current: Tensor,
    following: Tensor,
    goal: Tensor,
    text: Tensor,
    foreign: Tensor | None = None,
    *,
    gamma: float = GAMMA,
) -> Tensor:
    """``VIP + VIP-text + InfoNCE`` ("Revisiting the learning objectives", eq. 6).

    Args:
        start: frame embeddings z_i, unit length, float ``[B, E]``, B >= 2.
        current: z_j, j > i, unit length, float ``[B, E]``.
        following: z_j+1, the next frame, unit length, float ``[B, E]``.
        goal: z_k, k >= j + 1, unit length, float ``[B, E]``.
        text: sentence embeddings, unit length, float ``[B, E]``.
        foreign: negatives of each row in `infonce_loss`, bool ``[B, B]``; None takes all other rows.
        gamma: discount, in [0, 1].

    Returns:
        A scalar.
    """
    by_frame = vip_loss(start, current, following, goal, gamma=gamma)
    by_text = vip_text_loss(start, current, following, text, gamma=gamma)
    return by_frame + by_text + infonce_loss(goal, text, foreign)
