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
    pairs,
    parts_by_hand,
    run,
)
from vlp_gym.policies.ipl import IPL, IPLOptions, implied_reward, size_loss


def test_losses():
    q, next_v = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[10.0, 20.0]])
    rewards = implied_reward(q, next_v, 0.5)
    assert rewards.tolist() == [[[-4.0, -8.0], [-2.0, -6.0]]]
    assert size_loss(rewards).tolist() == [(16 + 64 + 4 + 36) / 4]
    assert size_loss(rewards, torch.tensor([[1.0, 0.0]])).tolist() == [(16 + 4) / 2]


@pytest.mark.parametrize("clip", [False, True])
def test_updates(clip):
    data = pairs()
    # A strong regularizer makes the limit 1 / (c (1 - gamma)) so small that it is met.
    strength = 2_000.0 if clip else 0.5
    options = IPLOptions(**TINY, tau=0.1, regularization=strength, clip_targets=clip)
    learner = IPL(options, SEEDS, pairs=data).double()
    parts, streams = [parts_by_hand(learner, e) for e in range(2)], clones(learner)
    expected, clipped = [], 0
    for e in range(2):
        for _ in range(4):
            chosen = torch.randperm(7, generator=streams[e])[:5]
            states, actions, mask = data.states[chosen], data.actions[chosen], data.mask[chosen]
            rows = states[:, :, :-1].reshape(-1, 3), actions[:, :, :-1].reshape(-1, 2), states[:, :, 1:].reshape(-1, 3)
            counted, labels = mask[:, :, 1:].reshape(-1), data.labels[chosen]

            def critics(q, next_v, counted=counted, labels=labels):
                nonlocal clipped
                if clip:
                    most = 1 / (strength * 0.01)
                    clipped += int((next_v.abs() > most).sum())
                    next_v = torch.clamp(next_v, -most, most)
                loss = torch.zeros((), dtype=torch.float64)
                for each in q:
                    implied = each - 0.99 * next_v
                    first, second = (implied * counted).reshape(5, 2, 5).sum(2).unbind(1)
                    chance = torch.sigmoid(first - second)
                    loss = loss - 0.5 * (labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
                    loss = loss + strength * 0.5 * (implied**2 * counted).sum() / counted.sum()
                return loss

            masks = drawn_masks(learner, len(rows[0]), streams[e])
            expected.append(improve_by_hand(parts[e], learner, (*rows, counted), critics, masks))
    assert (clipped > 0) == clip
    found = run(learner, 4)
    for row in found:
        row["critic"] = row["critic"] + row["size"]
    check_updates(learner, found, expected, parts)


def test_cut_segments_are_parts_of_the_real_steps():
    data = pairs(padded=True)
    learner = IPL(IPLOptions(**TINY, sub_steps=3), SEEDS, pairs=data).double()
    whole = {tuple(state.tolist()): n for n in range(7) for state in data.states[n].flatten(0, 1)}
    starts = set()
    for _ in range(40):
        cut = learner.draw_segments(3)
        assert cut.states.shape == (2, 5, 2, 3, 3)
        for e in range(2):
            for b in range(5):
                for side in range(2):
                    assert cut.mask[e, b, side].sum() in (2, 3)  # 2: a segment of no more
                    n = whole[tuple(cut.states[e, b, side, 0].tolist())]
                    t = int((data.states[n, side] == cut.states[e, b, side, 0]).all(1).nonzero()[0])
                    torch.testing.assert_close(cut.states[e, b, side], data.states[n, side, t : t + 3])
                    torch.testing.assert_close(cut.actions[e, b, side], data.actions[n, side, t : t + 3])
                    assert cut.labels[e, b] == data.labels[n]
                    starts.add((n, side, t))
    places = sum(max(int(steps) - 3, 0) + 1 for steps in data.mask.sum(2).flatten())
    assert len(starts) == places
    assert all(torch.isfinite(values).all() for row in run(learner, 2) for values in row.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sub_steps": 1}, "--sub-steps: expected at least 2, or 0 for all, got 1; a step needs the next state"),
        ({"regularization": 0.0, "clip_targets": True}, "--regularization: expected more than 0, got 0.0"),
    ],
)
def test_options(wrong, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        IPLOptions(**wrong)
