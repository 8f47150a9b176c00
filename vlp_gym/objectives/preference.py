"""Preference losses: Bradley-Terry on two scores, and VLP's sum over three kinds of pairs (VLP eqs. 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class VLPLoss:
    """The terms of VLP eq. 4, unweighted scalars, each a mean over its pairs.

    Attributes:
        total: ``itp + lambda_ilp * ilp + lambda_ivp * ivp``; call ``backward`` on this.
        itp: intra-task preference, two videos under the sentence of their task.
        ilp: inter-language preference, two videos under another task's sentence; log 2 at best.
        ivp: inter-video preference, each of the two videos against one of another task; the sum of both terms.
    """

    total: Tensor
    itp: Tensor
    ilp: Tensor
    ivp: Tensor


def bradley_terry_loss(score_a: Tensor, score_b: Tensor, label: Tensor | float, known: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``P(a > b) = sigmoid(score_a - score_b)``, averaged over all pairs (VLP eqs. 2 and 3).

    Args:
        score_a: scores of the first videos, float of any shape.
        score_b: scores of the second videos, float of the same shape.
        label: probability in [0, 1] that a is preferred, one number or one per pair: 1 is a, 0 is b, 0.5 is a tie. The
            paper's labels are reversed: its 0 is our 1.
        known: bool, the shape of the scores; False leaves a pair out of the mean. By default all count.

    Returns:
        The loss, a scalar; 0 where every pair is left out.

    Raises:
        ValueError: shapes differ (broadcasting would compare the wrong pairs), or a label is outside [0, 1].

    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([3.0]), 0.5)
    tensor(0.6931)
    """
    if score_a.shape != score_b.shape:
        raise ValueError(
            f"expected two score tensors of one shape, got {tuple(score_a.shape)} and {tuple(score_b.shape)}"
        )
    target = torch.as_tensor(label, dtype=score_a.dtype, device=score_a.device)
    if target.ndim and target.shape != score_a.shape:
        raise ValueError(
            f"expected one label or labels of shape {tuple(score_a.shape)}, got shape {tuple(target.shape)}"
        )
    if not ((target >= 0) & (target <= 1)).all():  # written so that NaN fails too
        raise ValueError("expected labels in [0, 1], the probability that the first video is preferred")
    if known is not None and known.shape != score_a.shape:
        raise ValueError(f"known: expected the shape {tuple(score_a.shape)}, got {tuple(known.shape)}")
    loss = F.binary_cross_entropy_with_logits(score_a - score_b, target.expand_as(score_a), reduction="none")
    return loss.mean() if known is None else (loss * known).sum() / known.sum().clamp_min(1)


def vlp_loss(
    itp: tuple[Tensor, Tensor, Tensor | float],
    ilp: tuple[Tensor, Tensor],
    ivp: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    lambda_ilp: float = 0.1,
    lambda_ivp: float = 0.5,
    *,
    known: Tensor | None = None,
) -> VLPLoss:
    """VLP's training loss (eq. 4), averaged over batch and negatives where the paper sums.

    Args:
        itp: ``(f(a|l), f(b|l), label)``, each float ``[B]``: two videos of one task under its sentence, and the
            probability that a is preferred.
        ilp: ``(f(a|l'), f(b|l'))``, each float ``[B]`` or ``[B, N]``: the same videos under sentences of N other tasks,
            equally preferred.
        ivp: ``((f(a|l), f(n|l)), (f(b|l), f(n|l)))``, float ``[B]`` for a and b, ``[B]`` or ``[B, N]`` for videos n of
            other tasks: under l any video of the task, even a random one, beats any video of another task.
        lambda_ilp: weight of the ILP term, the paper's lambda_1.
        lambda_ivp: weight of each of the two IVP terms, the paper's lambda_2.
        known: bool ``[B]``, whether the label of a pair is known; the ITP term leaves the others out. By default all.

    Returns:
        The total and its parts.

    Raises:
        ValueError: as `bradley_terry_loss`, or negatives do not have the batch size B.
    """
    itp_loss = bradley_terry_loss(*itp, known)
    ilp_loss = bradley_terry_loss(*ilp, 0.5)
    (a, negatives_a), (b, negatives_b) = ivp
    ivp_loss = _beats(a, negatives_a) + _beats(b, negatives_b)
    return VLPLoss(itp_loss + lambda_ilp * ilp_loss + lambda_ivp * ivp_loss, itp_loss, ilp_loss, ivp_loss)


def _beats(score: Tensor, negatives: Tensor) -> Tensor:
    """Bradley-Terry loss of ``score`` ``[B]`` being preferred to ``negatives``, ``[B]`` or ``[B, N]``."""
    if negatives.ndim == score.ndim + 1 and negatives.shape[:-1] == score.shape:
        score = score.unsqueeze(-1).expand_as(negatives)
    return bradley_terry_loss(score, negatives, 1.0)
