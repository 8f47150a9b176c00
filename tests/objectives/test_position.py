"""The position loss against NumPy, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.objectives.position import position_loss

RNG = np.random.default_rng(0)


def test_position_loss_is_smooth_l1_over_the_known():
    predicted, positions = RNG.normal(0, 1, (4, 5, 2, 3)), RNG.normal(0, 0.3, (4, 5, 2, 3))
    positions[1] = positions[0, 0, 1] = np.nan
    error = np.abs(predicted - (positions - [0, 0, -1]) / 0.2)
    error = error[~np.isnan(error)]
    expected = np.where(error < 0.1, error**2 / 0.2, error - 0.05).mean()
    assert position_loss(torch.tensor(predicted), torch.tensor(positions)).item() == pytest.approx(expected)


def test_one_metre_before_the_camera_is_zero():
    assert position_loss(torch.zeros(2, 3), torch.tensor([[0.0, 0, -1], [0.0, 0, -1]])) == 0


def test_nothing_known_costs_nothing_and_pulls_nowhere():
    predicted = torch.randn(3, 2, 3, requires_grad=True)
    loss = position_loss(predicted, torch.full((3, 2, 3), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predicted.grad, torch.zeros(3, 2, 3))
