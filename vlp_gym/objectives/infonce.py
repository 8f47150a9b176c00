"""InfoNCE between goal frames and sentences, as LIV has it: a sentence's own frame against those of other videos."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def infonce_loss(goal: Tensor, text: Tensor) -> Tensor:
    """``-log e^S(z_k, v) / (1/B sum over other videos of e^S(z_k', v))`` (eq. 6, third term), S the cosine.

    As "Revisiting the learning objectives" prints it: the own frame is not in the sum below, so the loss may be
    negative.

    Args:
        goal: embeddings z_k of late frames, unit length, float ``[B, E]``, B at least 2.
        text: embeddings of their sentences, likewise.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ValueError: for a batch of one, which has no other video.
    """
    batch = len(goal)
    if batch < 2:
        raise ValueError(f"goal: expected at least 2 videos to tell apart, got {batch}")
    similarity = text @ goal.T  # [sentence, video]
    own = torch.eye(batch, dtype=torch.bool, device=goal.device)
    against = similarity.masked_fill(own, -torch.inf).logsumexp(1) - math.log(batch)
    return (against - similarity.diagonal()).mean()
