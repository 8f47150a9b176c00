"""Losses between videos and sentences against NumPy, written a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.objectives.relevance import balanced_match_loss, text_to_video_loss, video_to_text_loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (7, 3))
GROUP = np.array([0, 0, 1, 1, 1, 2, 2])
POSITIVE = GROUP[:, None] == np.arange(3)


def tensors(*arrays):
    return [torch.tensor(array) for array in arrays]


def test_video_to_text_is_infonce():
    probability = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.log(probability[np.arange(7), GROUP]).mean()
    assert video_to_text_loss(*tensors(LOGITS, GROUP)).item() == pytest.approx(expected)


def test_text_to_video_sets_each_positive_against_all_negatives():
    losses = []
    for video, sentence in zip(*np.nonzero(POSITIVE), strict=True):
        negatives = LOGITS[~POSITIVE[:, sentence], sentence]
        own = np.exp(LOGITS[video, sentence])
        losses.append(-np.log(own / (own + np.exp(negatives).sum())))
    loss = text_to_video_loss(*tensors(LOGITS, POSITIVE))
    assert loss.item() == pytest.approx(np.mean(losses))


def test_no_negative_costs_nothing_and_its_gradient_is_finite():
    logits = torch.randn(4, 1, requires_grad=True)
    loss = text_to_video_loss(logits, torch.ones(4, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 1))


def test_nothing_to_learn_from_costs_nothing():
    logits = torch.randn(4, 2, requires_grad=True)
    none = torch.zeros(4, 2, dtype=torch.bool)
    losses = [
        text_to_video_loss(logits, none),
        text_to_video_loss(logits[:, :0], none[:, :0]),
        balanced_match_loss(logits[:0], none[:0]),
        video_to_text_loss(logits[:0], torch.zeros(0, dtype=torch.int64)),
    ]
    torch.stack(losses).sum().backward()
    assert [loss.item() for loss in losses] == [0] * 4
    assert torch.equal(logits.grad, torch.zeros(4, 2))


def test_match_weighs_right_and_wrong_alike():
    right, wrong = LOGITS[POSITIVE], LOGITS[~POSITIVE]
    expected = 0.5 * np.log(1 + np.exp(-right)).mean() + 0.5 * np.log(1 + np.exp(wrong)).mean()
    assert balanced_match_loss(*tensors(LOGITS, POSITIVE)).item() == pytest.approx(expected)


def test_the_best_constant_is_zero_however_rare_the_right_ones_are():
    positive = torch.zeros(40, 3, dtype=torch.bool)
    positive[0] = True
    losses = [balanced_match_loss(torch.full((40, 3), c), positive) for c in (-0.5, 0.0, 0.5)]
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]
    assert losses[1].item() == pytest.approx(np.log(2))
