"""InfoNCE between goal frames and sentences, as LIV has it: a sentence's own frame against those of other videos."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def infonce_loss(goal: Tensor, text: Tensor, foreign: Tensor | None = None) -> Tensor:
    """``-log e^S(z_k, v) / (1/B sum over other videos of e^S(z_k', v))`` (eq. 6, third term), S the cosine.

    As "Revisiting the learning objectives" prints it: the own frame is not in the sum below, so the loss may be
    negative; and the sum is divided by B, however many videos are in it.

    Args:
        goal: embeddings z_k of late frames, unit length, float ``[B, E]``, B at least 2.
        text: embeddings of their sentences, likewise.
        foreign: bool ``[B, B]``, for each row the rows in its sum, at least one and never the row itself; None takes
            all the others. Another video of the same task shows what the sentence says, too: no negative.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: for a batch of one, or a row of ``foreign``, that has no other video.
    """
    batch = len(goal)
    if batch < 2:
        raise ValueError(f"goal: expected at least 2 videos to tell apart, got {batch}")
    if foreign is None:
        foreign = ~torch.eye(batch, dtype=torch.bool, device=goal.device)
    elif not foreign.any(1).all():
        raise ValueError(
            f"foreign: expected another video for every row, got none for row {int(foreign.sum(1).argmin())}"
        )
    similarity = text @ goal.T  # [sentence, video]
    against = similarity.masked_fill(~foreign, -torch.inf).logsumexp(1) - math.log(batch)
    return (against - similarity.diagonal()).mean()
