from __future__ import annotations

import re

import pytest
import torch

from tests.learners_by_hand import (
    SEEDS,
    TINY,
    check_updates,
    clones,
    drawn_masks,
    improve_by_hand,
    parts_by_hand,
    run,
    transitions,
)
from vlp_gym.policies.iql import IQL, IQLOptions, advantage_weight, critic_loss, expectile_loss


def test_losses():
    assert expectile_loss(torch.tensor([1.0, -1.0, 3.0]), 0.7).tolist() == pytest.approx([0.7, 0.3, 6.3])
    assert expectile_loss(torch.tensor([2.0, -2.0]), 0.5).tolist() == [2.0, 2.0]  # half the square
    assert advantage_weight(torch.tensor([0.0, 0.5, 99.0]), 0.5, 100.0).tolist() == pytest.approx([1.0, 2.718282, 100])
    q, target = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]]), torch.tensor([[0.0, 1.0]])
    assert critic_loss(q, target).tolist() == [(1 + 1 + 0 + 9) / 2]
    assert critic_loss(q, target, torch.tensor([[1.0, 0.0]])).tolist() == [1.0]


def test_updates():
    data = transitions()
    learner = IQL(IQLOptions(**TINY, tau=0.1), SEEDS, transitions=data).double()
    parts, streams = [parts_by_hand(learner, e) for e in range(2)], clones(learner)
    expected = []
    for e in range(2):
        for _ in range(4):
            rows = torch.randint(30, (5,), generator=streams[e])
            rewards = data.rewards[rows]

            def critics(q, next_v, rewards=rewards):
                return sum(((each - rewards - 0.99 * next_v) ** 2).mean() for each in q)

            chosen = data.states[rows], data.actions[rows], data.next_states[rows], torch.ones(5)
            masks = drawn_masks(learner, 5, streams[e])
            expected.append(improve_by_hand(parts[e], learner, chosen, critics, masks))
    found = run(learner, 4)
    check_updates(learner, found, expected, parts)


def test_it_prefers_what_is_paid():
    """One step, actions of chance, paid by the first number of the action: the policy learns to make it large."""
    data = transitions(500, dtype=torch.float32)
    data = type(data)(data.states, data.actions, data.states, data.actions[:, 0], data.weights)
    options = IQLOptions(hidden=(32, 32), batch=64, learning_rate=3e-3, dropout=0.0, discount=0.0, tau=0.05)
    learner = IQL(options, [0, 1], transitions=data)
    run(learner, 500)
    with torch.no_grad():
        means = learner.actor(data.states.expand(2, -1, -1)).mean(1)
    assert (means[:, 0] > 0.5).all()
    assert (means[:, 1].abs() < 0.3).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expectile": 1.5}, "--expectile: expected a share from 0 to 1, got 1.5"),
        ({"temperature": 0}, "--temperature: expected more than 0, got 0"),
        ({"dropout": 1.0}, "--dropout: expected a share from 0 to below 1, got 1.0"),
        ({"steps": 0}, "--steps: expected at least 1, got 0"),
        ({"hidden": ()}, "--hidden: expected at least 1, got 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: expected more than 0, got nan"),
    ],
)
def test_options(wrong, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        IQLOptions(**wrong)
