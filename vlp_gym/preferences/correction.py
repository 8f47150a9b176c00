"""What the answers of a better labeler say about the pairs that it was not asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.preferences.segments import Segments
from vlp_gym.schema import Document, Spec, check_tensors

Floats = NDArray[np.float64]

TRUST = 4.0
"""Logit of a certain label of the cheap labeler is half of this, before anything is known about it."""
VARIANCE = 4.0
"""Of the reward's linear and of its other part, in squared logits."""
STEPS, TOLERANCE = 30, 1e-4
"""Of Newton's method."""
_TABLE = {
    "first": Spec(torch.float64, ("N", "D")),
    "second": Spec(torch.float64, ("N", "D")),
    "prior": Spec(torch.float64, ("N",), low=-TRUST / 2, high=TRUST / 2),
    "answers": Spec(torch.float64, ("N",), low=0, high=1),
}


class Correction:
    """P(first > second) by a cheap labeler, corrected by all answers so far of a better one.

    Gaussian process preference learning (Chu and Ghahramani, 2005) with Laplace's approximation. The reward of a
    segment is a Gaussian process over its mean state and action, the sum of a linear and an RBF kernel on standardized
    numbers; the logit of a pair is that of the cheap labeler, times a factor around 1, plus the difference of both
    rewards. So an answer changes what is thought of pairs like it, and of how far the cheap labeler is right at all.
    """

    def __init__(self) -> None:
        self.first = self.second = np.zeros((0, 0))
        self.prior, self.answers = np.zeros(0), np.zeros(0)

    def __len__(self) -> int:
        return len(self.answers)

    def add(self, first: Segments, second: Segments, probability: Floats, answers: Floats) -> None:
        """Learn from N answers in [0, 1]; of NaN nothing is learned.

        Args:
            first: N segments.
            second: N segments.
            probability: what the cheap labeler said of them, ``[N]``; NaN is 0.5.
            answers: what the better one said, ``[N]``.
        """
        given = ~np.isnan(answers)
        for name, new in (("first", _features(first)), ("second", _features(second))):
            setattr(self, name, np.concatenate([getattr(self, name), new[given]]) if len(self) else new[given])
        self.prior = np.concatenate([self.prior, _prior(probability[given])])
        self.answers = np.concatenate([self.answers, answers[given]])

    def __call__(self, first: Segments, second: Segments, probability: Floats) -> Floats:
        """P(first > second), float64 ``[N]``, nearer to 0.5 where less is known; as it is before the first answer."""
        if not len(self):
            return probability
        known = len(self)
        a, b = np.concatenate([self.first, _features(first)]), np.concatenate([self.second, _features(second)])
        deviation = np.concatenate([a, b]).std(0)
        told = deviation > 1e-6
        a, b = (side[:, told] / deviation[told] / np.sqrt(max(told.sum(), 1)) for side in (a, b))
        mean = np.concatenate([self.prior, _prior(probability)])
        covariance = mean[:, None] * mean[:known] + VARIANCE * (
            _kernel(a, a[:known]) - _kernel(a, b[:known]) - _kernel(b, a[:known]) + _kernel(b, b[:known])
        )
        squares = ((a - b)[known:] ** 2).sum(1)
        own = mean[known:] ** 2 + VARIANCE * (squares + 2 * (1 - np.exp(-squares / 2)))
        logit, variance = _posterior(covariance[:known], covariance[known:], own, mean, self.answers)
        return _sigmoid(logit / np.sqrt(1 + np.pi * variance / 8))

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The answers as a JSON document and tensors."""
        return {}, {name: torch.from_numpy(getattr(self, name)) for name in _TABLE}

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], where: str | Path) -> Correction:
        """The inverse of `pack`; `where` is named in errors."""
        Document.parse(document, where)
        check_tensors(tensors, _TABLE, where)
        correction = cls()
        for name, tensor in tensors.items():
            setattr(correction, name, tensor.numpy())
        return correction


def _posterior(covariance: Floats, across: Floats, own: Floats, mean: Floats, answers: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of the logits of N new pairs, given M answers (Rasmussen and Williams, 2006, section 3.4).

    Args:
        covariance: of the answered pairs, ``[M, M]``.
        across: of the new ones with them, ``[N, M]``.
        own: variances of the new ones, ``[N]``.
        mean: of all before the answers, ``[M + N]``.
        answers: in [0, 1], ``[M]``.
    """
    known = len(answers)
    before, logit = mean[:known], mean[:known].copy()
    for _ in range(STEPS):
        chance = _sigmoid(logit)
        weight = np.maximum(chance * (1 - chance), 1e-5)
        root = np.sqrt(weight)
        matrix = np.eye(known) + root[:, None] * covariance * root
        push = weight * (logit - before) + answers - chance
        push -= root * np.linalg.solve(matrix, root * (covariance @ push))
        last, logit = logit, before + covariance @ push
        if np.abs(logit - last).max() < TOLERANCE:
            break
    scaled = root[:, None] * across.T
    variance = own - (scaled * np.linalg.solve(matrix, scaled)).sum(0)
    return mean[known:] + across @ push, np.maximum(variance, 0.0)


def _features(segments: Segments) -> Floats:
    """Mean state and action of each segment, ``[N, S + A]``."""
    real = segments.mask[:, :, None]
    return np.where(real, segments.inputs, 0.0).sum(1, dtype=np.float64) / real.sum(1)


def _prior(probability: NDArray[Any]) -> Floats:
    return np.asarray(TRUST * (np.nan_to_num(probability, nan=0.5) - 0.5))


def _kernel(one: Floats, other: Floats) -> Floats:
    linear = one @ other.T
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * linear
    return np.asarray(linear + np.exp(-np.maximum(squares, 0.0) / 2))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))
