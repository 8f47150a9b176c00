"""Progress losses against NumPy, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.objectives.progress import pairwise_ranking_loss, progress_loss

RNG = np.random.default_rng(0)


def test_progress_loss_is_cross_entropy_over_the_known():
    logits, target = RNG.normal(0, 3, (4, 6)), RNG.uniform(0, 1, (4, 6))
    target[1] = np.nan
    target[0, :2] = 0, 1
    known = ~np.isnan(target)
    p = 1 / (1 + np.exp(-logits[known]))
    expected = -(target[known] * np.log(p) + (1 - target[known]) * np.log(1 - p)).mean()
    assert progress_loss(torch.tensor(logits), torch.tensor(target)).item() == pytest.approx(expected)


def test_nothing_known_costs_nothing_and_pulls_nowhere():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = progress_loss(logits, torch.full((3, 2), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 2))


def test_gradients_go_to_the_known_only():
    logits = torch.zeros(4, requires_grad=True)
    progress_loss(logits, torch.tensor([0.0, torch.nan, 1.0, 0.5])).backward()
    assert logits.grad.tolist() == pytest.approx([0.5 / 3, 0.0, -0.5 / 3, 0.0])


def test_pairwise_ranking_loss_is_bradley_terry_over_the_pairs():
    logits, value = RNG.normal(0, 2, (3, 5)), RNG.uniform(0, 1, (3, 5))
    value[0, 2] = value[1, :] = np.nan
    losses = [
        np.log(1 + np.exp(logits[g, j] - logits[g, i]))
        for g in range(3)
        for i in range(5)
        for j in range(5)
        if value[g, i] - value[g, j] > 0.25
    ]
    assert len(losses) > 5
    loss = pairwise_ranking_loss(torch.tensor(logits), torch.tensor(value), margin=0.25)
    assert loss.item() == pytest.approx(np.mean(losses))


def test_groups_are_never_compared():
    logits = torch.tensor([[0.0, 5.0], [-3.0, 9.0]])
    loss = pairwise_ranking_loss(logits, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), margin=0.5)
    assert loss.item() == 0


def test_a_difference_of_the_margin_says_nothing():
    logits, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.0]])
    assert pairwise_ranking_loss(logits, value, margin=0.5).item() == 0
    assert pairwise_ranking_loss(logits, value, margin=0.49).item() == pytest.approx(np.log(1 + np.e))


def test_a_right_order_has_a_vanishing_gradient_and_a_wrong_one_does_not():
    for scores, small in (([[20.0, -20.0]], True), ([[-20.0, 20.0]], False)):
        logits = torch.tensor(scores, requires_grad=True)
        pairwise_ranking_loss(logits, torch.tensor([[1.0, 0.0]]), margin=0.1).backward()
        assert (logits.grad.abs().max() < 1e-6) == small
        assert logits.grad.isfinite().all()
