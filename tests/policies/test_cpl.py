from __future__ import annotations

import math

import pytest
import torch

from tests.learners_by_hand import SEEDS, TINY, act, adam, check_same, clones, descend, drawn_masks, pairs, plain, run
from vlp_gym.policies.cpl import CPL, CPLOptions, cpl_loss

FIRST, SECOND = torch.tensor([[0.3, -2.0, 1.0]]), torch.tensor([[-0.4, 1.5, 0.2]])


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_bias_at_its_limits():
    # 1: the logistic loss of the difference, as of Bradley-Terry.
    for label, sign in ((1.0, 1), (0.0, -1)):
        labels = torch.full((1, 3), label)
        differences = [sign * (a - b) for a, b in zip(FIRST[0].tolist(), SECOND[0].tolist(), strict=True)]
        expected = sum(-math.log(1 / (1 + math.exp(-d))) for d in differences) / 3
        assert cpl_loss(FIRST, SECOND, labels, 1.0).item() == pytest.approx(expected, abs=1e-6)
    # 0: the preferred segment alone.
    expected = sum(softplus(-a) for a in FIRST[0].tolist()) / 3
    assert cpl_loss(FIRST, SECOND, torch.ones(1, 3), 0.0).item() == pytest.approx(expected, abs=1e-6)
    assert cpl_loss(FIRST, SECOND + 7, torch.ones(1, 3), 0.0).item() == pytest.approx(expected, abs=1e-6)


def test_the_bias_between():
    labels = torch.tensor([[1.0, 0.0, 0.5]])
    expected = [
        softplus(-(0.3 + 0.2)),
        softplus(-(1.5 + 1.0)),
        0.5 * softplus(-(1 - 0.1)) + 0.5 * softplus(-(0.2 - 0.5)),
    ]
    assert cpl_loss(FIRST, SECOND, labels, 0.5).item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    # Both advantages lower by as much: Bradley-Terry does not see it, the bias does.
    assert cpl_loss(FIRST - 1, SECOND - 1, labels, 0.5) > cpl_loss(FIRST, SECOND, labels, 0.5)
    torch.testing.assert_close(cpl_loss(FIRST - 1, SECOND - 1, labels, 1.0), cpl_loss(FIRST, SECOND, labels, 1.0))


def test_large_advantages_stay_finite():
    loss = cpl_loss(torch.tensor([[-1e4]]), torch.tensor([[1e4]]), torch.ones(1, 1), 0.5)
    assert loss.item() == pytest.approx(1.5e4)


def test_updates():
    """Two updates imitate everything; then a new optimizer, a rising learning rate, and contrast."""
    data = pairs()
    learner = CPL(CPLOptions(**TINY, bc_steps=2, warmup=4), SEEDS, pairs=data).double()
    networks, streams = [plain(learner.actor.net, e, end=torch.nn.Tanh) for e in range(2)], clones(learner)
    expected = []
    for network, stream in zip(networks, streams, strict=True):
        optimizer = adam(network, learner)
        for step in range(5):
            chosen = torch.randperm(7, generator=stream)[:5]
            states, actions, mask = (getattr(data, name)[chosen] for name in ("states", "actions", "mask"))
            masks = drawn_masks(learner, 60, stream)
            means = act(network, states.reshape(-1, 3), masks).reshape(5, 2, 6, 2)
            log_probs = -((actions - means) ** 2).sum(3)
            if step == 2:
                optimizer = adam(network, learner)
            if step >= 2:
                optimizer.param_groups[0]["lr"] = 1e-4 * (step - 1) / 4
                one, two = (0.1 * (log_probs * mask).sum(2)).unbind(1)
                y = 1 - data.labels[chosen]  # the paper's: the second is preferred
                loss = (y * torch.log1p(torch.exp(-(two - 0.5 * one)))).mean()
                loss = loss + ((1 - y) * torch.log1p(torch.exp(-(one - 0.5 * two)))).mean()
            else:
                loss = -(log_probs * mask).sum() / mask.sum()
            expected.append(loss.item())
            descend(optimizer, loss)
    found = run(learner, 5)
    ours = [row["imitation" if step < 2 else "actor"][e].item() for e in range(2) for step, row in enumerate(found)]
    assert ours == pytest.approx(expected, abs=1e-6)
    for e in range(2):
        check_same(learner.actor.net, e, networks[e])
    assert [learner.rates(step) for step in (1, 2, 4, 5, 6)] == [
        {}, {"actor": 0.25}, {"actor": 0.75}, {"actor": 1.0}, {},
    ]  # fmt: skip
