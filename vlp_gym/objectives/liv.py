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
        start: embeddings z_i, unit length, float ``[B, E]``, B at least 2.
        current: z_j, j > i, likewise.
        following: z_j+1, the next frame, likewise.
        goal: z_k, k >= j + 1, likewise.
        text: embeddings of the sentences, likewise.
        foreign: bool ``[B, B]``, for each row the rows that `infonce_loss` sets against it; None takes all the others.
        gamma: discount, in [0, 1].

    Returns:
        A scalar.
    """
    by_frame = vip_loss(start, current, following, goal, gamma=gamma)
    by_text = vip_text_loss(start, current, following, text, gamma=gamma)
    return by_frame + by_text + infonce_loss(goal, text, foreign)
