"""A preference session in a hand-written loop: schedule, reward, interrupts, save and restore."""

from __future__ import annotations

import doctest
import importlib
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vlp_gym.preferences
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences import (
    PreferenceLearner,
    Queries,
    RecordedLabeler,
    RewardEnsemble,
    ScriptedLabeler,
    SegmentStore,
    StateEntropy,
    choose_pairs,
)
from vlp_gym.storage import write_pair
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPRewardWrapper

QUERIES = Queries(budget=60, session=15, every=40, explore=50, newest=20, candidates=4, length=6)
EPISODE = 10
TOTAL = 200
PROBE = torch.linspace(-2, 2, 20).view(10, 2)


def learner(labeler=None, queries=QUERIES, **options):
    return PreferenceLearner(labeler or ScriptedLabeler(), queries, **{"hidden": (32, 32), "seed": 5, **options})


def play(learner, steps, judge=lambda state: float("nan")):
    """Random moves of a point, paid for its place; each step depends on its number alone."""
    for step in steps:
        rng = np.random.default_rng(step)
        state, action = rng.normal(size=2), rng.uniform(-1, 1, 1)
        learner.add_step(0, state, action, float(state[0]), step % EPISODE == 0, value=judge(state))
        if learner.due(step):
            learner.session(step, TOTAL)
    return learner


def begun(learner):
    learner.start(2, 1)
    return learner


def share_in_order(learner):
    """Share of pairs of unseen segments whose learned returns are in the order of the true ones."""
    unseen = SegmentStore(QUERIES.length)
    for step in range(1000, 1400):
        rng = np.random.default_rng(step)
        state = rng.normal(size=2)
        unseen.add(0, state, rng.uniform(-1, 1, 1), float(state[0]))
        if step % EPISODE == 0:
            unseen.end(0)
    first, second = choose_pairs(unseen, None, 200, np.random.default_rng(0), sampler="uniform")
    returns = []
    for side in (first, second):
        rewards = learner.reward(*(torch.from_numpy(x[side.mask]) for x in (side.states, side.actions)))
        sums = torch.zeros(side.mask.shape)
        sums[torch.from_numpy(side.mask)] = rewards
        returns.append(sums.sum(1).numpy())
    return float(np.mean((returns[0] > returns[1]) == (first.returns > second.returns)))


def test_a_hand_written_loop_learns_the_teachers_order():
    """Stable-Baselines3 is missing. By chance, half of the 200 pairs would be in order, give or take 0.035."""
    code = (
        "import sys; sys.modules['stable_baselines3'] = None; sys.path.insert(0, sys.argv[1]);"
        "from test_learner import *; torch.set_num_threads(1);"
        "new = learner(queries=replace(QUERIES, budget=100, session=25), fit_epochs=60);"
        "done = play(begun(new), range(1, TOTAL + 1)); print(done.asked, share_in_order(done))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    asked, share = done.stdout.split()
    assert int(asked) == 100
    assert float(share) > 0.85


def test_sessions_come_when_they_are_due():
    done = learner()
    done.start(2, 1, random_steps=7)
    play(done, range(1, TOTAL + 1))
    first = 7 + QUERIES.explore
    assert [row["step"] for row in done.history] == [first, first + 40, first + 80, first + 120]
    assert [row["labels"] for row in done.history] == [15, 30, 45, 60]
    assert all(row["label_accuracy"] == 1.0 and row["skipped"] == 0 for row in done.history)
    assert not any("judged_accuracy" in row for row in done.history)
    assert not done.due(10_000)
    done.start(2, 1)  # another training: there is a reward, and nothing to explore
    assert done.next_session == QUERIES.every


def test_labels_are_judged_by_more_than_what_the_environment_pays(tmp_path):
    """The teacher compares what is paid; the judge says the opposite, or knows half of the steps."""
    half = play(begun(learner()), range(1, 101), lambda state: -state[0])
    assert all(row["judged_accuracy"] == 0.0 for row in half.history)
    half.save(tmp_path)
    done = begun(learner())
    done.restore(tmp_path)
    done.start(2, 1, step=100)
    whole = play(begun(learner()), range(1, TOTAL + 1), lambda state: -state[0])
    assert play(done, range(101, TOTAL + 1), lambda state: -state[0]).history == whole.history
    document, tensors = half.pack()
    older = {name: tensor for name, tensor in tensors.items() if not name.endswith(".values")}
    done.unpack(document, older, tmp_path)
    play(done, range(101, TOTAL + 1))
    assert not any("judged_accuracy" in row for row in done.history[2:])


def test_a_session_is_not_due_without_two_segments(caplog):
    new = begun(learner(queries=replace(QUERIES, explore=5)))
    play(new, range(1, 10))
    assert not new.history
    assert [record.message for record in caplog.records] == [
        "queries are due, but no two segments have been finished yet: they come when that is so"
    ]
    play(new, [10])
    assert [row["step"] for row in new.history] == [10]


@pytest.mark.parametrize("options", [{}, {"reward_std": 0.5, "semi_supervised": True, "disagreement_bonus": 0.1}])
def test_restored_it_goes_on_bit_for_bit(options, tmp_path):
    def new():
        return learner(ScriptedLabeler("mistake", seed=3), **options)

    whole = play(begun(new()), range(1, TOTAL + 1))
    half = play(begun(new()), range(1, 101))
    half.save(tmp_path)
    again = new()
    again.restore(tmp_path)
    again.start(2, 1, step=100)
    assert torch.equal(again.reward(PROBE, PROBE[:, :1]), half.reward(PROBE, PROBE[:, :1]))
    play(again, range(101, TOTAL + 1))
    assert (again.asked, again.history) == (whole.asked, whole.history)
    assert torch.equal(
        again.reward(PROBE, PROBE[:, :1], left=0.5),
        whole.reward(PROBE, PROBE[:, :1], left=0.5),
    )
    (document, tensors), (expected, others) = again.pack(), whole.pack()
    assert document == expected
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_what_was_saved_before_the_start_is_restored(tmp_path):
    learner().save(tmp_path)
    again = learner()
    again.restore(tmp_path)
    assert again.ensemble is None
    assert play(begun(again), range(1, TOTAL + 1)).asked == QUERIES.budget


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("where", ["labeler", "fit"])
def test_an_interrupt_loses_no_labels(where, restored, monkeypatch, tmp_path):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    interrupted = play(begun(learner()), range(1, 50))
    with monkeypatch.context() as patch:
        if where == "fit":
            patch.setattr(RewardEnsemble, "fit", stop)
        else:
            interrupted.labeler = stop
        with pytest.raises(KeyboardInterrupt):
            play(interrupted, [50])
    labels = QUERIES.session if where == "fit" else 0
    assert (interrupted.asked, len(interrupted.preferences), interrupted.history) == (labels, labels, [])
    assert interrupted.unfitted == (where == "fit")
    assert not interrupted.fitted
    interrupted.labeler = ScriptedLabeler()
    if restored:
        interrupted.save(tmp_path)
        interrupted = learner()
        interrupted.restore(tmp_path)
    interrupted.start(2, 1, step=50)
    assert interrupted.fitted == (where == "fit")
    assert not interrupted.unfitted
    play(interrupted, [51])  # the session that did not come to its end is still due
    assert interrupted.asked == len(interrupted.preferences) == labels + QUERIES.session


def test_skipped_pairs_teach_nothing():
    done = play(begun(learner(lambda first, second: np.full(len(first), np.nan))), range(1, 100))
    assert [(row["skipped"], row["labels"]) for row in done.history] == [(15, 0), (15, 0)]
    assert "fit_loss" not in done.history[0]
    assert (done.fitted, done.asked) == (False, 30)
    assert done.reward(PROBE, PROBE[:, :1]).tolist() == [0.0] * 10


def test_the_reward_is_scaled_over_labelled_steps_or_those_of_the_caller():
    done = play(begun(learner(reward_std=0.5)), range(1, 51))
    steps = torch.from_numpy(done.preferences.inputs[done.preferences.mask])
    paid = done.reward(steps[:, :2], steps[:, 2:])
    assert float(paid.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(paid.std()) == pytest.approx(0.5, rel=1e-4)
    done.measure(PROBE, PROBE[:, :1])
    paid, raw = done.reward(PROBE, PROBE[:, :1]), done.ensemble.predict(PROBE, PROBE[:, :1])
    torch.testing.assert_close(paid, (raw - raw.mean()) / raw.std() * 0.5)
    unscaled = play(begun(learner()), range(1, 51))
    unscaled.measure(PROBE, PROBE[:, :1])
    assert torch.equal(unscaled.reward(PROBE, PROBE[:, :1]), unscaled.ensemble.predict(PROBE, PROBE[:, :1]))


def test_disagreement_is_paid_by_the_share_of_steps_left():
    done = play(begun(learner(disagreement_bonus=0.3)), range(1, 51))
    plain, spread = done.ensemble.predict(PROBE, PROBE[:, :1]), done.ensemble.bonus(PROBE, PROBE[:, :1])
    for left in (0.0, 0.25, 1.0):
        torch.testing.assert_close(done.reward(PROBE, PROBE[:, :1], left=left), plain + 0.3 * left * spread)


def test_a_reward_model_labels_what_its_engine_scored():
    asked = []

    def labeler(first, second):
        asked.append((first, second))
        return RecordedLabeler()(first, second)

    env = VLPRewardWrapper(PaintedEnv([9, 7, 8]), "press the button", PaintedModel(), mode="async")
    new = learner(labeler, replace(QUERIES, budget=10, session=10, explore=30))
    new.start(1, 1)
    env.engine.on_answer = new.segments.on_answer
    state, _ = env.reset()
    for step in range(1, 41):
        following, _, terminated, truncated, info = env.step(0)
        own = info["vlp"]["env_reward"]
        new.add_step(0, state, np.zeros(1), own, terminated or truncated, env.ticket)
        env.poll()
        state = env.reset()[0] if terminated or truncated else following
        if new.due(step):
            env.engine.wait()
            new.session(step, 40)
    env.close()
    ((first, second),) = asked
    sums = [
        [sum(painted_value(0, span.episode, step + 1) for step in range(span.start, span.stop)) for span in side.spans]
        for side in (first, second)
    ]
    np.testing.assert_array_equal(new.preferences.labels, np.heaviside(np.subtract(*sums), 0.5))


def test_messages(tmp_path):
    new = learner(reward_std=0.5)
    for raised, call in {
        "expected start(state_size, action_size) before the first step": lambda: new.due(1),
        "expected start(state_size, action_size) before the first session": lambda: new.session(1, 10),
        "expected to start at step 0, or to restore(folder) first, got step 7": lambda: new.start(2, 1, step=7),
        "reward_std must be a number above 0, or None, got 0.0": lambda: learner(reward_std=0.0),
        "reward_std must be a number above 0, or None, got nan": lambda: learner(reward_std=float("nan")),
        "the budget of 60 pairs is spent; hold a session only if due(step)": lambda: spent().session(999, 999),
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(raised)}$"):
            call()
    new.save(tmp_path)
    for options, name, ours, saved in [
        ({"reward_std": 0.1}, "reward_std", 0.1, 0.5),
        ({"reward_std": 0.5, "hidden": (8,)}, "hidden", [8], [32, 32]),
        ({"reward_std": 0.5, "seed": 6}, "seed", 6, 5),
        ({"reward_std": 0.5, "queries": replace(QUERIES, every=9)}, "every", 9, 40),
        ({"reward_std": 0.5, "keep_frames": 64}, "keep_frames", 64, 0),
    ]:
        message = f"{tmp_path}/learner.json: expected {name}={ours}, but it was saved with {saved}"
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            learner(**options).restore(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a folder with learner\.json and learner\.safetensors, but"):
        learner().restore(tmp_path / "missing")


def spent():
    return play(begun(learner()), range(1, TOTAL + 1))


def test_exploration_compares_with_what_is_drawn():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    counts = []

    def draw(count, rng):
        counts.append(count)
        return points[rng.permutation(4)]

    reward = StateEntropy(draw, k=1, neighbours=4, seed=1)
    distances = [1.0, 1.0, 2.0, 4.0]
    for calls in (1, 2):  # the deviation runs over all distances so far
        paid = reward(points, torch.empty(4, 1))
        np.testing.assert_allclose(paid, np.array(distances) / np.std(distances * calls, ddof=1), rtol=1e-6)
    assert counts == [4, 4]
    few = StateEntropy(lambda count, rng: points[:2], k=5)
    assert few(points[:1], torch.empty(1, 1)).tolist() == [
        pytest.approx(1e8)
    ]  # the farthest there is; no deviation yet


@pytest.mark.parametrize("name", ["exploration", "labelers", "learner", "teachers"])
def test_the_examples_in_the_docstrings(name):
    tested = doctest.testmod(importlib.import_module(f"vlp_gym.preferences.{name}"))
    assert tested.attempted > 0
    assert tested.failed == 0


def test_every_public_name_can_be_imported():
    assert all(getattr(vlp_gym.preferences, name) is not None for name in vlp_gym.preferences.__all__)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d, t: d["history"][0].update(label_accuracy=1.5),
            "history.0.label_accuracy: expected less",
        ),
        (lambda d, t: d.update(asked=61), "asked: expected at most 60 pairs, got 61"),
        (lambda d, t: d.update(reward=[0.0, 0.0]), "reward.1: expected a factor above 0, got 0.0"),
        (lambda d, t: d["rng"].update(bit_generator="MT19937"), "no state of PCG64"),
        (lambda d, t: d["settings"].update(more=1), "unknown settings: more"),
        (lambda d, t: d["segments"].update(length=7), "preferences/inputs: expected rows of the shape [2, 7, 3], got"),
        (lambda d, t: d.update(ensemble=None), "unknown tensors: ensemble/adam.0.exp_avg"),
        (lambda d, t: t["preferences/labels"].fill_(2), "labels: expected numbers from 0 to 1, got 2"),
        (lambda d, t: t["ensemble/mean"].fill_(math.nan), "mean: expected finite numbers, got NaN or inf"),
    ],
)
def test_a_refused_learner_changes_nothing(tmp_path, change, message):
    saved, live = begun(learner()), begun(learner())
    play(saved, range(1, 120))
    play(live, range(1, 80))
    document, tensors = saved.pack()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(document, tensors)
    write_pair(tmp_path, document, tensors, stem="learner")
    before, old = live.pack()
    old = {name: tensor.clone() for name, tensor in old.items()}
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tmp_path}/learner.json: {message}')}"):
        live.restore(tmp_path)
    after, new = live.pack()
    assert after == before
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)
