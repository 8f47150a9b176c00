"""Networks of one shape that are computed together: an ensemble, or all seeds of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def stacked_mlp(
    rows: Tensor, weights: Iterable[Tensor], biases: Iterable[Tensor], activate: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The outputs of E multi-layer perceptrons, each for its own rows.

    Args:
        rows: float ``[E, B, I]``.
        weights: of each layer, float ``[E, inward, outward]``.
        biases: of each layer, float ``[E, 1, outward]``.
        activate: called with the number of each hidden layer, from 0, and what comes out of it, which it may change.

    Returns:
        float ``[E, B, O]``, of the last layer, without an activation.
    """
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        rows = torch.baddbmm(bias, activate(number - 1, rows) if number else rows, weight)
    return rows
