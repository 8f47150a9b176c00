from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.rollouts import painted, with_steps
from vlp_gym.errors import DatasetError
from vlp_gym.policies.bc import BC, BCOptions
from vlp_gym.policies.cpl import CPL, CPLOptions
from vlp_gym.policies.data import pairs_of, transitions_of
from vlp_gym.policies.networks import MOST_ACTION
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.segments import Segments, Span

TASK = "reach-v3"


def rollouts():
    return [with_steps(painted(TASK, tier, number)) for number, tier in enumerate(("expert", "medium", "random"))]


def test_transitions_of_rollouts():
    made = rollouts()
    made[0].action[0] = [1, -1, 0, 0]
    data = transitions_of(made)
    assert len(data) == sum(len(t.action) for t in made)
    place = 0
    for t in made:
        for step in range(len(t.action)):
            np.testing.assert_array_equal(data.states[place], t.observation[step])
            np.testing.assert_array_equal(data.next_states[place], t.observation[step + 1])
            np.testing.assert_allclose(data.actions[place], t.action[step], atol=1.1e-5)
            assert data.rewards[place] == t.episode_reward[step]
            place += 1
    assert data.actions.abs().max().item() == pytest.approx(MOST_ACTION)
    assert data.weights.tolist() == [1.0] * place
    own = [np.full(len(t.action), k) for k, t in enumerate(made)]
    chosen = transitions_of(made, rewards=own, weights=own)
    assert chosen.rewards.tolist() == chosen.weights.tolist() == np.concatenate(own).tolist()
    assert chosen.fingerprint() != data.fingerprint() == transitions_of(made).fingerprint()


def nan_reward(made):
    made[1].episode_reward[4] = np.nan
    return transitions_of(made)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda made: transitions_of([]), "expected trajectories to learn from, got none"),
        (
            lambda made: transitions_of([replace(made[0], action=None)]),
            "task reach-v3, expert, seed 0: expected the action of every step, found none; learning a policy needs "
            "data of format version 2: collect it again",
        ),
        (
            lambda made: transitions_of([made[0], replace(made[1], action=made[1].action[:, :2])]),
            "expected one size of action in all trajectories, got [2, 4]",
        ),
        (
            lambda made: transitions_of(
                [replace(made[0], episode_reward=np.zeros(0), action=np.zeros((0, 4)), observation=np.zeros((1, 39)))]
            ),
            "task reach-v3, expert, seed 0: expected at least one step, got none",
        ),
        (nan_reward, "task reach-v3, medium, seed 1: rewards: expected finite numbers, got nan at step 4"),
        (
            lambda made: transitions_of(made, rewards=[np.zeros(3)]),
            "rewards: expected those of 3 trajectories, got 1",
        ),
        (
            lambda made: transitions_of(made, weights=[np.zeros(3)] * 3),
            "task reach-v3, expert, seed 0: expected 75 weights, got the shape [3]",
        ),
        (
            lambda made: transitions_of(made, weights=[np.linspace(1, -1, len(t.action)) for t in made]),
            "task reach-v3, expert, seed 0: weights: expected finite numbers of at least 0, got "
            f"{np.linspace(1, -1, 75)[38]} at step 38",
        ),
        (lambda made: pairs_of(PreferenceBuffer(), 4), "expected labelled pairs of segments, got none"),
        (
            lambda made: pairs_of(buffer(), 4),
            "expected labelled pairs with states beside 4 numbers of an action, got 3 numbers in all",
        ),
        (lambda made: BC(BCOptions(), [0]), "bc: expected transitions to learn from, got none"),
        (
            lambda made: CPL(CPLOptions(), [0], transitions=transitions_of(made)),
            "cpl: expected pairs to learn from, got none",
        ),
        (
            lambda made: CPL(CPLOptions(), [0], transitions=transitions_of(made), pairs=pairs_of(buffer(), 1)),
            "expected transitions and pairs of one size of state and action, got [(39, 4), (2, 1)]",
        ),
    ],
)  # fmt: skip
def test_bad_data(use, message):
    with pytest.raises(DatasetError, match="^" + re.escape(message) + "$"):
        use(rollouts())


def test_the_same_seed_twice():
    for seeds in ([], [1, 1]):
        message = f"expected at least one seed, and none twice, got {seeds}"
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            BC(BCOptions(), seeds, transitions=transitions_of(rollouts()))


def buffer():
    """Two pairs of segments of 3 steps, states [2] and actions [1]; the second of the first pair has 2 steps."""
    sides = []
    for side in range(2):
        states = np.arange(12, dtype=np.float32).reshape(2, 3, 2) + 100 * side
        mask = np.ones((2, 3), bool)
        if side:
            mask[0, 2], states[0, 2] = False, 0
        actions = np.full((2, 3, 1), 2 * side - 1, np.float32) * mask[..., None]
        sides.append(Segments(states, actions, mask, states[..., 0], (Span(0, 0, 3),) * 2, (None, None)))
    made = PreferenceBuffer()
    made.add(*sides, [1.0, 0.5])
    return made


def test_pairs_of_a_buffer():
    made = buffer()
    pairs = pairs_of(made, 1)
    assert pairs.states.tolist() == made.inputs[..., :2].tolist()
    assert pairs.actions[0, 0, 0].item() == pytest.approx(-MOST_ACTION)
    assert pairs.mask.tolist() == [[[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]]]
    assert pairs.labels.tolist() == [1.0, 0.5]
    assert {block.dtype for block in vars(pairs).values()} == {torch.float32}
