"""LIV's InfoNCE between goal frames and sentences: a sentence's frame against those of other videos."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def infonce_loss(goal: Tensor, text: Tensor, foreign: Tensor | None = None) -> Tensor:
    """``-log e^S(z_k, v) / (1/B sum over other videos of e^S(z_k', v))`` (eq. 6, third term), S the cosine.

    As printed in "Revisiting the learning objectives": the denominator excludes the positive, so the loss may be
    negative, and it is divided by B, however many videos it sums.

    Args:
        goal: embeddings z_k of late frames, unit length, float ``[B, E]``, B >= 2.
        text: embeddings v of their sentences, unit length, float ``[B, E]``.
        foreign: negatives of each row, bool ``[B, B]``, at least one and never the row itself; None takes all other
            rows. Exclude other videos of the same task: they fit the sentence, too.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: B is 1, or a row of ``foreign`` has no negative.
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
