from __future__ import annotations

import math
import re

import pytest
import torch

from tests.learners_by_hand import (
    SEEDS,
    TINY,
    adam,
    check_same,
    check_updates,
    clones,
    descend,
    drawn_masks,
    improve_by_hand,
    pairs,
    parts_by_hand,
    plain,
    run,
    transitions,
)
from vlp_gym.policies.p_iql import PIQL, PIQLOptions, pair_loss


def test_the_loss_of_pairs_is_bradley_terry():
    first, second = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[0.5, 1.0, 3.0]])
    labels = torch.tensor([[1.0, 1.0, 0.5]])
    by_hand = [-math.log(1 / (1 + math.exp(-1.5))), -math.log(1 / (1 + math.exp(2.0))), math.log(2)]
    assert pair_loss(first, second, labels).tolist() == pytest.approx([sum(by_hand) / 3], abs=1e-6)
    twice = pair_loss(first.expand(1, 2, 3), second.expand(1, 2, 3), labels)  # two critics
    assert twice.tolist() == pytest.approx([sum(by_hand) / 3], abs=1e-6)


def reward_by_hand(network, optimizer, data, chosen):
    """One step of the reward on pairs; returns the rewards of before it, ``[B, 2, L]``, and the loss."""
    paid = network(torch.cat([data.states[chosen], data.actions[chosen]], dim=3))[..., 0]
    sums = (paid * data.mask[chosen]).sum(2)
    labels = data.labels[chosen]
    log_chances = torch.log_softmax(sums, dim=1)
    loss = -(labels * log_chances[:, 0] + (1 - labels) * log_chances[:, 1]).mean()
    descend(optimizer, loss)
    return paid.detach(), loss.item()


def test_updates():
    """The reward learns for two updates of four; the policy learns on what it was before its step."""
    data = pairs()
    learner = PIQL(PIQLOptions(**TINY, tau=0.1, reward_steps=2, steps=4), SEEDS, pairs=data).double()
    parts, streams = [parts_by_hand(learner, e) for e in range(2)], clones(learner)
    rewards = [plain(learner.reward, e) for e in range(2)]
    expected, reward_losses = [], []
    for e in range(2):
        optimizer = adam(rewards[e], learner)
        for step in range(4):
            chosen = torch.randperm(7, generator=streams[e])[:5]
            if step < 2:
                paid, loss = reward_by_hand(rewards[e], optimizer, data, chosen)
                reward_losses.append(loss)
            else:
                paid = rewards[e](torch.cat([data.states[chosen], data.actions[chosen]], dim=3))[..., 0].detach()
            states, actions, mask = data.states[chosen], data.actions[chosen], data.mask[chosen]
            rows = states[:, :, :-1].reshape(-1, 3), actions[:, :, :-1].reshape(-1, 2), states[:, :, 1:].reshape(-1, 3)
            counted, target = mask[:, :, 1:].reshape(-1), paid[:, :, :-1].reshape(-1)

            def critics(q, next_v, counted=counted, target=target):
                return sum(((each - target - 0.99 * next_v) ** 2 * counted).sum() / counted.sum() for each in q)

            for group in parts[e]["actor_adam"].param_groups:
                group["lr"] = 3e-4 * 0.5 * (1 + math.cos(math.pi * step / 4))
            masks = drawn_masks(learner, len(rows[0]), streams[e])
            expected.append(improve_by_hand(parts[e], learner, (*rows, counted), critics, masks))
    found = run(learner, 4)
    check_updates(learner, found, expected, parts)
    ours = [row["reward"][e].item() for e in range(2) for row in found[:2]]
    assert ours == pytest.approx(reward_losses, abs=1e-6)
    assert "reward" not in found[2]
    for e in range(2):
        check_same(learner.reward, e, rewards[e])


def test_the_reward_learns_on_parts_of_segments():
    """The policy learns on the same parts where it takes all rows."""
    data = pairs(padded=False)
    learner, twin = (PIQL(PIQLOptions(**TINY, sub_steps=3), SEEDS, pairs=data).double() for _ in range(2))
    cut = twin.draw_segments(3)
    with torch.no_grad():
        inputs = torch.cat([cut.states, cut.actions], dim=4)
        paid = torch.stack([plain(twin.reward, e)(inputs[e])[..., 0].sum(2) for e in range(2)])
        log_chances = torch.log_softmax(paid, dim=2)
        rewards = -(cut.labels * log_chances[..., 0] + (1 - cut.labels) * log_chances[..., 1]).mean(1)
        rows = inputs[..., :-1, :].flatten(1, 3)
        u = twin.target(rows)[..., 0].amin(1) - twin.value(rows[..., :3])[:, 0, :, 0]
        values = (torch.abs(0.7 - (u < 0).double()) * u**2).mean(1)
    (found,) = run(learner, 1)
    assert found["reward"].tolist() == pytest.approx(rewards.tolist(), abs=1e-6)
    assert found["value"].tolist() == pytest.approx(values.tolist(), abs=1e-6)


@pytest.mark.parametrize("learn_on", ["pairs", "data"])
def test_fewer_rows_are_steps_of_the_data(learn_on):
    """Each row is a step with the state that follows it; a row of the padding does not count."""
    data, steps = pairs(), transitions()
    options = PIQLOptions(**TINY, rows=400, learn_on=learn_on)
    learner = PIQL(options, SEEDS, pairs=data, transitions=steps if learn_on == "data" else None).double()
    rows = learner._rows(None)
    assert rows.states.shape == (2, 400, 3)
    known = {}
    if learn_on == "data":
        known = {tuple(s.tolist()): (n, 1.0) for s, n in zip(steps.states, steps.next_states, strict=True)}
    else:
        for n in range(7):
            for side in range(2):
                for t in range(5):
                    states = data.states[n, side]
                    known[tuple(states[t].tolist())] = (states[t + 1], data.mask[n, side, t + 1].item())
    seen = set()
    for e in range(2):
        for row in range(400):
            key = tuple(rows.states[e, row].tolist())
            following, real = known[key]
            if key != (0.0, 0.0, 0.0):  # all states of the padding are alike
                seen.add(key)
                assert real == (1.0 if rows.mask is None else rows.mask[e, row])
                torch.testing.assert_close(rows.next_states[e, row], following)
    assert len(seen) > 0.9 * (len(known) - 1)
    losses = run(learner, 2)
    assert all(torch.isfinite(values).all() for row in losses for values in row.values())


def test_accuracy_on_the_labels():
    """Labels by the sum of the first number of the state are learned."""
    data = pairs(40, 6, dtype=torch.float32)
    returns = (data.states[..., 0] * data.mask).sum(2)
    data = type(data)(data.states, data.actions, data.mask, (returns[:, 0] > returns[:, 1]).float())
    options = PIQLOptions(hidden=(32, 32), batch=32, learning_rate=3e-3, rows=8, dropout=0.0)
    learner = PIQL(options, SEEDS, pairs=data)
    before = learner.label_accuracy()
    run(learner, 150)
    after = learner.label_accuracy()
    assert len(after) == 2
    assert min(after) > 0.9 > max(before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sub_steps": -2}, "--sub-steps: expected at least 2, or 0 for all, got -2; a step needs the next state"),
        ({"reward_steps": 0}, "--reward-steps: expected at least 1, got 0"),
        ({"rows": -1}, "--rows: expected at least 0, got -1"),
    ],
)
def test_options(wrong, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        PIQLOptions(**wrong)
