"""Losses that match videos and sentences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def video_to_text_loss(logits: Tensor, group: Tensor) -> Tensor:
    """InfoNCE over sentences: each video against all sentences of the batch.

    Args:
        logits: relevance of V videos to G sentences, float ``[V, G]``.
        group: index of each video's sentence, int64 ``[V]``.

    Returns:
        The mean over the videos, a scalar; 0 if there is none.
    """
    return _mean(F.cross_entropy(logits, group, reduction="none"))


def text_to_video_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE over videos with several positives: each positive against all negatives (SupCon's outer sum).

    Args:
        logits: relevance of V videos to G sentences, float ``[V, G]``.
        positive: bool ``[V, G]``, whether the video shows the sentence.

    Returns:
        The mean over the positives, a scalar; 0 if there is none.
    """
    against = logits.masked_fill(positive, -torch.inf).logsumexp(0)  # [G]
    losses = F.softplus(against[None, :] - logits)
    return _mean(losses[positive])


def balanced_match_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(logits) as P(video shows sentence), with equal weight on right and wrong pairs.

    This puts the decision boundary at 0 if both are equally common. Arguments as `text_to_video_loss`; a side without
    pairs counts 0.
    """
    return 0.5 * (_mean(F.softplus(-logits[positive])) + _mean(F.softplus(logits[~positive])))


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)
