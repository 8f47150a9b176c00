from __future__ import annotations

import pytest
import torch

from tests.learners_by_hand import (
    SEEDS,
    TINY,
    act,
    adam,
    check_same,
    clones,
    descend,
    drawn_masks,
    pairs,
    plain,
    run,
    transitions,
)
from vlp_gym.policies.bc import BC, BCOptions, bc_loss, preferred_steps


def test_loss():
    log_probs = torch.tensor([[-1.0, -3.0], [-2.0, 0.0]])
    assert bc_loss(log_probs).tolist() == [2.0, 1.0]
    assert bc_loss(log_probs, torch.tensor([[1.0, 0.0], [0.5, 9.0]])).tolist() == [0.5, 0.5]


def test_updates():
    data = transitions()
    learner = BC(BCOptions(**TINY), SEEDS, transitions=data).double()
    networks, streams = [plain(learner.actor.net, e, end=torch.nn.Tanh) for e in range(2)], clones(learner)
    expected = []
    for network, stream in zip(networks, streams, strict=True):
        optimizer = adam(network, learner)
        for _ in range(3):
            rows = torch.randint(30, (5,), generator=stream)
            means = act(network, data.states[rows], drawn_masks(learner, 5, stream))
            loss = (data.weights[rows] * ((data.actions[rows] - means) ** 2).sum(1)).mean()
            expected.append(loss.item())
            descend(optimizer, loss)
    found = run(learner, 3)
    assert [row["actor"][e].item() for e in range(2) for row in found] == pytest.approx(expected, abs=1e-6)
    for e in range(2):
        check_same(learner.actor.net, e, networks[e])


def test_preferred_steps():
    data = pairs(3)
    first, second, both = (data.mask[n] > 0 for n in range(3))
    expected = [data.states[0, 0][first[0]], data.states[1, 1][second[1]]]
    expected += [data.states[2, 0][both[0]], data.states[2, 1][both[1]]]
    chosen = preferred_steps(data)
    torch.testing.assert_close(chosen.states, torch.cat(expected))
    assert chosen.weights.tolist() == [1.0] * len(chosen)


def test_it_learns_to_imitate():
    """Actions that are a function of the state are found; those of weight 0 are not learned."""
    data = transitions(200, dtype=torch.float32)
    right = torch.tanh(data.states[:, :2])
    actions, weights = torch.where(torch.arange(200)[:, None] < 100, right, -right), torch.zeros(200)
    weights[:100] = 1
    data = type(data)(data.states, actions, data.next_states, data.rewards, weights)
    options = BCOptions(hidden=(32, 32), batch=32, learning_rate=3e-3, dropout=0.0)
    learner = BC(options, [0, 1], transitions=data)
    run(learner, 600)
    with torch.no_grad():
        errors = (learner.actor(data.states.expand(2, -1, -1)) - right).square().sum(2).mean(1)
    assert (errors < 0.05).all()
