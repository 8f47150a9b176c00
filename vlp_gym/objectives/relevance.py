"""Losses that tie videos to sentences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def video_to_text_loss(logits: Tensor, group: Tensor) -> Tensor:
    """InfoNCE over sentences: each video picks its own among the batch's.

    Args:
        logits: ``[V, G]``, relevance of every video to every sentence.
        group: int64 ``[V]``, the sentence that belongs to each video.

    Returns:
        The mean over the videos, a scalar; 0 if there is none.
    """
    return _mean(F.cross_entropy(logits, group, reduction="none"))


def text_to_video_loss(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """InfoNCE over videos with several positives: each positive against all that are not (SupCon's outer sum).

    Args:
        logits: ``[V, G]``, relevance of every video to every sentence.
        positive: bool ``[V, G]``, the video shows the sentence.
        candidate: bool ``[V, G]``, the video counts at all for the sentence (positives or negatives).

    Returns:
        The mean over the positives, a scalar; 0 if there is none.
    """
    negative = candidate & ~positive
    against = logits.masked_fill(~negative, -torch.inf).logsumexp(0)  # [G]
    losses = F.softplus(against[None, :] - logits)
    return _mean(losses[positive])


def balanced_match_loss(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(logits) as "this video shows this sentence", right and wrong pairs weighing the same.

    Makes 0 the border between right and wrong when both are equally common. Arguments as `text_to_video_loss`; a side
    with no pairs counts 0.
    """
    negative = candidate & ~positive
    return 0.5 * (_mean(F.softplus(-logits[positive])) + _mean(F.softplus(logits[negative])))


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)
