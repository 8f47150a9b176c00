"""Exploration before the first labels: states far from the others are rewarded (PEBBLE, Lee et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class StateEntropy:
    """Rewards a state by the distance to its k-th nearest neighbour (PEBBLE, eq. 3).

    Args:
        draw: called with `neighbours` and a generator; returns the states to compare with, ``[N, S]``, N at least 1.
        k: which neighbour, from 1.
        neighbours: steps of the agent to draw states from at each call.
        seed: seeds the draws.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> reward = StateEntropy(lambda count, rng: points[:count], k=1)
        >>> reward(points, torch.empty(3, 1))  # distances 1, 1, 2, whose standard deviation is the root of 1/3
        tensor([1.7321, 1.7321, 3.4641])
    """

    def __init__(
        self, draw: Callable[[int, np.random.Generator], Tensor], *, k: int = 5, neighbours: int = 2048, seed: int = 0
    ) -> None:
        self.draw, self.k, self.neighbours = draw, k, neighbours
        self.rng = np.random.default_rng(seed)
        self.moments = (0, 0.0, 0.0)
        """Number of distances so far, their mean, and the sum of their squared deviations from it."""

    def __call__(self, states: Tensor, actions: Tensor) -> Tensor:
        """Distances over their running standard deviation, ``[B]``, for states ``[B, S]``; actions are not used."""
        others = self.draw(self.neighbours, self.rng)
        # Not by matrix products, which lose small distances between large numbers.
        distances = torch.cdist(states, others, compute_mode="donot_use_mm_for_euclid_dist")
        # The state itself is among the others where it was drawn, at a distance of 0.
        nearest = distances.kthvalue(min(self.k + 1, len(others)), dim=1).values
        count, mean, square = self.moments
        for value in nearest.double().tolist():  # Welford's running moments
            count, delta = count + 1, value - mean
            mean += delta / count
            square += delta * (value - mean)
        self.moments = (count, mean, square)
        deviation = (square / max(count - 1, 1)) ** 0.5
        return nearest / max(deviation, 1e-8)
