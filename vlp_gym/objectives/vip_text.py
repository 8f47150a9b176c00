"""VIP with the sentence as the goal."""

from __future__ import annotations

from torch import Tensor

from vlp_gym.objectives.vip import GAMMA, vip_loss


def vip_text_loss(start: Tensor, current: Tensor, following: Tensor, text: Tensor, *, gamma: float = GAMMA) -> Tensor:
    """Implicit time contrast towards the sentence ("Revisiting the learning objectives", eq. 4); see `vip_loss`.

    Args:
        start: frame embeddings z_i, unit length, float ``[B, E]``.
        current: z_j, j > i, unit length, float ``[B, E]``.
        following: z_j+1, the next frame, unit length, float ``[B, E]``.
        text: sentence embeddings, unit length, float ``[B, E]``.
        gamma: discount, in [0, 1].

    Returns:
        A scalar.
    """
    return vip_loss(start, current, following, text, gamma=gamma)
