"""R3M's objective without weights of its own: time contrast of frames, and of frames and the sentence."""

from __future__ import annotations

from torch import Tensor

from vlp_gym.objectives.tcn import tcn_loss
from vlp_gym.objectives.tcn_text import tcn_text_loss


def r3m_loss(first: Tensor, middle: Tensor, last: Tensor, text: Tensor, others: Tensor) -> Tensor:
    """``TCN + TCN-text`` ("Revisiting the learning objectives", eq. 5), without R3M's reward network on [z_0, z_i, v].

    Args:
        first: embeddings z_i, unit length, float ``[B, E]``.
        middle: z_j, j > i, likewise.
        last: z_k, k > j, likewise.
        text: embeddings of the sentences, likewise.
        others: int64 ``[B, N]``, for each row the rows that give its negatives; never the row itself.

    Returns:
        A scalar.
    """
    return tcn_loss(first, middle, last, others) + tcn_text_loss(first, middle, text, others)
