from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.learners_by_hand import SEEDS, TINY, transitions
from tests.stored import check_refused
from vlp_gym.errors import CheckpointError
from vlp_gym.policies.bc import BC, BCOptions
from vlp_gym.policies.policy import Policy, load


def learner(**options):
    return BC(BCOptions(**TINY, **options), SEEDS, transitions=transitions(dtype=torch.float32))


def test_it_acts_as_the_actor_without_dropout(tmp_path):
    trained = learner()
    Policy.of(trained, 7).save(tmp_path)
    rows = np.random.default_rng(0).normal(size=(5, 3))
    with torch.no_grad():
        expected = trained.actor(torch.from_numpy(rows).float().expand(2, -1, -1)).numpy()
    for e, seed in enumerate(SEEDS):
        policy = load(tmp_path, seed=seed)
        actions, state = policy.predict(rows, state="kept")
        assert (actions.dtype, state) == (np.float32, "kept")
        np.testing.assert_allclose(actions, expected[e], atol=1e-6)
        np.testing.assert_allclose(policy.predict(rows[0])[0], expected[e, 0], atol=1e-6)
    assert load(tmp_path).seed == SEEDS[0]
    assert load(tmp_path).document["step"] == 7


def test_a_policy_is_a_copy():
    trained = learner()
    policy = Policy.of(trained, 0)
    before = policy.predict(np.ones(3))[0]
    with torch.no_grad():
        trained.actor.net.weights[0].zero_()
    assert policy.predict(np.ones(3))[0].tolist() == before.tolist()


def test_actions_of_chance():
    trained = learner(head="gaussian")
    trained.actor.log_std.data[:] = torch.tensor([[[-3.0, -1.0]], [[0.0, 0.0]]])
    policy = Policy.of(trained, 0)
    mean = policy.predict(np.zeros(3))[0]
    drawn = policy.predict(np.zeros((20_000, 3)), deterministic=False)[0]
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.02)
    assert drawn[:, 0].std() == pytest.approx(np.exp(-3), rel=0.05)
    assert abs(drawn).max() <= 1
    plain = Policy.of(learner(), 0)
    assert plain.predict(np.zeros(3), deterministic=False)[0].tolist() == plain.predict(np.zeros(3))[0].tolist()


def test_stable_baselines3_evaluates_it():
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    environment = gym.make("Pendulum-v1")  # its observation has 3 numbers
    trained = BC(BCOptions(**TINY), SEEDS, transitions=one_number(transitions(dtype=torch.float32)))
    mean, deviation = evaluation.evaluate_policy(Policy.of(trained, 0), environment, n_eval_episodes=2, warn=False)
    assert np.isfinite([mean, deviation]).all()
    environment.close()


def one_number(data):
    return type(data)(data.states, data.actions[:, :1], data.next_states, data.rewards, data.weights)


def test_wrong_use():
    policy = Policy.of(learner(), 0)
    with pytest.raises(ValueError, match=r"^expected observations \[3\] or \[N, 3\], got \[4\]$"):
        policy.predict(np.zeros(4))
    with pytest.raises(ValueError, match=r"^seed: expected one of 4, 1, got 2$"):
        policy.use_seed(2)


def test_what_is_not_a_policy_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match="^" + re.escape(f"{tmp_path / 'no'}: expected a folder with policy.json")
    ):
        load(tmp_path / "no")
    Policy.of(learner(head="gaussian"), 0).save(tmp_path)
    policy = load(tmp_path)
    for change, message in (
        (lambda d, t: d.update(seeds=[4, 4]), "seeds: expected different ones, got [4, 4]"),
        (lambda d, t: d.update(hidden=[]), "hidden: List should have at least 1 item after validation, not 0, got []"),
        (lambda d, t: d.update(head="softmax"), "head: expected 'deterministic' or 'gaussian', got 'softmax'"),
        (lambda d, t: d.update(format=2), "format: expected 1, got 2"),
        (lambda d, t: d.update(more=1), "more: an unknown entry"),
        (
            lambda d, t: t.update({"weights.0": torch.zeros(2, 3, 9)}),
            "weights.0: expected the shape [2, 3, 8], got [2, 3, 9]",
        ),
        (lambda d, t: t["weights.0"].fill_(torch.nan), "weights.0: expected finite numbers, got NaN or inf"),
        (lambda d, t: t.pop("log_std"), "missing tensors: log_std"),
    ):
        document = dict(policy.document)
        check_refused(policy, tmp_path, change, message)
        policy.document = document
