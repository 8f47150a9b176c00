"""TCN with the sentence in place of the last frame."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp_gym.objectives.tcn import contrast


def tcn_text_loss(earlier: Tensor, later: Tensor, text: Tensor, others: Tensor) -> Tensor:
    """The sentence prefers the later frame to the earlier one, and to later frames of other videos.

    ``-log e^S(z_j, v) / (e^S(z_j, v) + e^S(z_i, v) + sum over others of e^S(z_j', v))`` for i < j, S the cosine
    ("Revisiting the learning objectives", eq. 2).

    Args:
        earlier: frame embeddings z_i, unit length, float ``[B, E]``.
        later: z_j, unit length, float ``[B, E]``.
        text: sentence embeddings v, unit length, float ``[B, E]``.
        others: row indices of each row's negatives, int64 ``[B, N]``; never the row itself.

    Returns:
        The mean over the batch, a scalar.
    """
    positive = (later * text).sum(-1)
    before = (earlier * text).sum(-1)
    foreign = (later[others] * text[:, None]).sum(-1)
    return contrast(positive, torch.cat([before[:, None], foreign], 1))
