"""R3M's objective without its reward network: time contrast of frames, and of frames and the sentence."""

from __future__ import annotations

from torch import Tensor

from vlp_gym.objectives.tcn import tcn_loss
from vlp_gym.objectives.tcn_text import tcn_text_loss


def r3m_loss(first: Tensor, middle: Tensor, last: Tensor, text: Tensor, others: Tensor) -> Tensor:
    """``TCN + TCN-text`` ("Revisiting the learning objectives", eq. 5), without R3M's reward network on [z_0, z_i, v].

    Args:
        first: frame embeddings z_i, unit length, float ``[B, E]``.
        middle: z_j, j > i, unit length, float ``[B, E]``.
        last: z_k, k > j, unit length, float ``[B, E]``.
        text: sentence embeddings v, unit length, float ``[B, E]``.
        others: row indices of each row's negatives, int64 ``[B, N]``; never the row itself.

    Returns:
        A scalar.
    """
    return tcn_loss(first, middle, last, others) + tcn_text_loss(first, middle, text, others)
