from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tests.rollouts import painted, with_steps
from vlp_gym.errors import CheckpointError, DatasetError
from vlp_gym.evaluation import metrics
from vlp_gym.policies.labels import (
    CoinLabeler,
    LabelReport,
    TierLabeler,
    draw_pairs,
    find_pairs,
    label_pairs,
    load_labels,
    store_of,
    two_sets,
)
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.labelers import ModelLabeler, ScriptedLabeler
from vlp_gym.testing import PaintedModel

TASK = "reach-v3"


def rollouts(each=3, tiers=("expert", "medium", "random")):
    """Those of experts do other actions than the rest."""
    made = []
    for tier in tiers:
        for _ in range(each):
            rollout = with_steps(painted(TASK, tier, len(made), 16 + len(made) % 3))
            if tier == "expert":
                rollout = replace(rollout, action=np.abs(rollout.action))
            made.append(rollout)
    return made


def sides(trajectories, pairs=60, length=20, seed=0):
    return draw_pairs(store_of(trajectories, length), two_sets(trajectories), pairs, np.random.default_rng(seed))


def test_k_means_tells_kinds_apart_without_rewards():
    made = rollouts()
    sets = two_sets(made)
    assert set(sets[:3].tolist()) != set(sets[3:].tolist())
    blind = [replace(t, episode_reward=t.episode_reward[::-1] * 7, success=~t.success, reward=-t.reward) for t in made]
    assert two_sets(blind).tolist() == sets.tolist()


def test_pairs_are_of_both_kinds_in_both_orders():
    made = rollouts()
    sets, (first, second) = two_sets(made), sides(made, 200)
    kinds = np.array([sets[[span.episode for span in side.spans]] for side in (first, second)])
    assert (kinds.sum(0) == 1).all()
    assert 60 < kinds[0].sum() < 140
    starts = {(span.episode, span.start) for side in (first, second) for span in side.spans}
    assert {episode for episode, _ in starts} == set(range(9))
    for side in (first, second):
        for row, span in enumerate(side.spans):
            t = made[span.episode]
            assert span.stop - span.start == 20
            np.testing.assert_array_equal(side.states[row], t.observation[span.start : span.stop])
            np.testing.assert_array_equal(side.actions[row], t.action[span.start : span.stop])
            np.testing.assert_array_equal(side.rewards[row], t.episode_reward[span.start : span.stop])
    assert {t for _, t in starts} > {0}
    assert max(span.stop - len(made[span.episode].action) for span in first.spans) == 0


def test_a_trajectory_shorter_than_a_segment_is_one():
    made = rollouts()
    first, _ = sides(made, length=500)
    assert [(span.start, span.stop) for span in first.spans] == [
        (0, len(made[span.episode].action)) for span in first.spans
    ]


def test_tiers_and_coins():
    made = rollouts()
    first, second = sides(made)
    ranks = {"expert": 2, "medium": 1, "random": 0}
    better = [
        ranks[made[a.episode].tier] - ranks[made[b.episode].tier]
        for a, b in zip(first.spans, second.spans, strict=True)
    ]
    assert TierLabeler(made)(first, second).tolist() == [{1: 1.0, 0: 0.5, -1: 0.0}[int(np.sign(d))] for d in better]
    labels = CoinLabeler(3)(first, second)
    assert set(labels.tolist()) == {0.0, 1.0}
    assert labels.tolist() == CoinLabeler(3)(first, second).tolist() != CoinLabeler(4)(first, second).tolist()
    near = [*made, with_steps(painted(TASK, "near_miss", 9))]
    message = "task reach-v3, near_miss, seed 9: expected a tier of expert, medium, random, which alone are ranked"
    with pytest.raises(DatasetError, match="^" + re.escape(message) + "$"):
        TierLabeler(near)


def test_the_report_says_how_right_the_labels_are(tmp_path):
    made = rollouts()

    def mostly(first, second):
        """The scripted label, but the first ten are wrong, the next five equal, and five are skipped."""
        labels = ScriptedLabeler()(first, second)
        labels[:10] = 1 - labels[:10]
        labels[10:15], labels[15:20] = 0.5, np.nan
        return labels

    labelled = label_pairs(made, mostly, source="mine", pairs=60, length=20)
    report = labelled.report
    assert (report.equal, report.skipped, report.first + report.second) == (5, 5, 50)
    assert (report.scripted_accuracy, report.scripted_pairs) == (0.8, 50)
    assert sum(report.sets) == 9
    tiers = label_pairs(made, TierLabeler(made), source="mtvlp", pairs=60, length=20).report
    assert (tiers.mtvlp_accuracy, tiers.mtvlp_pairs + tiers.equal) == (1.0, 60)
    assert len(labelled.buffer) == 55
    labelled.save(tmp_path)
    assert LabelReport.model_validate_json((tmp_path / "labels.json").read_text()) == report
    assert PreferenceBuffer.load(tmp_path).labels.tolist() == labelled.buffer.labels.tolist()
    assert str(report).splitlines() == [
        f"60 pairs labelled by mine: {report.first} first, {report.second} second, 5 equal, 5 skipped",
        "accuracy against scripted labels: 0.800 of the 50 that take a side",
        f"accuracy against MTVLP labels: {report.mtvlp_accuracy:.3f} of the {report.mtvlp_pairs} that take a side",
    ]


def test_other_tiers_have_no_mtvlp_labels():
    made = [*rollouts(), with_steps(painted(TASK, "near_miss", 9))]
    report = label_pairs(made, ScriptedLabeler(), source="scripted", length=20).report
    assert (report.mtvlp_accuracy, report.mtvlp_pairs, report.scripted_accuracy) == (None, 0, 1.0)
    assert json.loads(report.model_dump_json())["mtvlp_accuracy"] is None
    assert "MTVLP" not in str(report)


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_a_model_labels_by_the_frames(kind):
    """The painted model sees the rollout's number: the higher one wins, by its sum over frames and by its last one."""
    made = [replace(t, frames=np.full_like(t.frames, 10 * n)) for n, t in enumerate(rollouts())]
    first, second = sides(made)
    labeler = ModelLabeler(PaintedModel(), made[0].canonical, kind=kind)
    higher = [a.episode > b.episode for a, b in zip(first.spans, second.spans, strict=True)]
    assert labeler(first, second).tolist() == [float(wins) for wins in higher]


def test_labels_given_earlier_are_found_in_the_data(tmp_path):
    made = rollouts()
    label_pairs(made, ScriptedLabeler(), source="scripted", pairs=30, length=20).save(tmp_path)
    buffer = PreferenceBuffer.load(tmp_path)
    found = find_pairs(made[::-1], buffer, "runs/labels")  # in any order
    assert found.buffer.inputs.tolist() == buffer.inputs.tolist()
    assert found.buffer.labels.tolist() == buffer.labels.tolist()
    assert (found.report.scripted_accuracy, found.report.scripted_pairs) == (1.0, 30)
    message = r"^runs/labels: labels of another data set: segment [01] of pair \d+ is not in these 6 trajectories$"
    with pytest.raises(DatasetError, match=message):
        find_pairs(made[:6], buffer, "runs/labels")
    with pytest.raises(DatasetError, match=r"^runs/none: expected labelled pairs of segments, got none$"):
        find_pairs(made, PreferenceBuffer(), "runs/none")


def test_saved_labels_are_those_that_are_asked_for(tmp_path):
    asked = {"source": "scripted", "pairs": 30, "length": 20}
    made = rollouts()
    labelled = label_pairs(made, ScriptedLabeler(), **asked)
    labelled.save(tmp_path)
    assert load_labels(tmp_path, **asked).report == labelled.report
    for other in ({"source": "random"}, {"pairs": 31}, {"length": 21}):
        wanted = {**asked, **other}
        message = (
            f"{tmp_path} holds other labels: 30 pairs of 20 steps by scripted, not {wanted['pairs']} of "
            f"{wanted['length']} by {wanted['source']}; choose another --out"
        )
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            load_labels(tmp_path, **wanted)
    path = tmp_path / "labels.json"
    text = path.read_text()
    for old, new, message in (
        ('"first": ', '"first": -', "first: expected greater than or equal to 0, got "),
        ('"skipped": 0', '"skipped": 0, "more": 1', "more: an unknown entry"),
        ('"equal": 0', '"equal": 1', "expected the report of 30 labelled pairs, got that of 31"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match="^" + re.escape(f"{path}: {message}")):
            load_labels(tmp_path, **asked)
    find_pairs(made, labelled.buffer, "scripted").save(tmp_path)  # from an earlier run: of any number and length
    assert len(load_labels(tmp_path, source="scripted", pairs=7, length=5).buffer) == 30


@pytest.mark.parametrize(
    ("value", "effect"),
    [(1.0, "they may only say which segment comes first"), (0.5, "nothing is learned from them")],
)
def test_labels_that_are_all_equal(value, effect):
    with pytest.warns(UserWarning, match=f"^mine: all 10 labels are {value:g}: {effect}$"):
        label_pairs(rollouts(), lambda a, b: np.full(len(a), value), source="mine", pairs=10, length=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        label_pairs(rollouts(), CoinLabeler(), source="random", pairs=10, length=20)


def test_nothing_to_compare(monkeypatch):
    made = rollouts()
    with pytest.raises(
        DatasetError, match=r"^task reach-v3, expert, seed 0: expected at least two trajectories to compare, got one$"
    ):
        label_pairs(made[:1], ScriptedLabeler(), source="scripted")
    with pytest.raises(DatasetError, match=r"^expected trajectories to learn from, got none$"):
        label_pairs([], ScriptedLabeler(), source="scripted")
    with pytest.raises(DatasetError, match=r"^mine: all 10 pairs were skipped, so there is nothing to learn from$"):
        label_pairs(made, lambda a, b: np.full(len(a), np.nan), source="mine", pairs=10)
    with pytest.raises(ValueError, match=r"^pairs must be at least 1, got 0$"):
        label_pairs(made, ScriptedLabeler(), source="scripted", pairs=0)
    monkeypatch.setattr(metrics, "kmeans_two_sets", lambda features, seed: np.zeros(len(features), np.int64))
    message = (
        "task reach-v3: k-means found one kind of trajectory only, the other set is empty; add trajectories that "
        "differ, such as other tiers"
    )
    with pytest.raises(DatasetError, match="^" + re.escape(message) + "$"):
        label_pairs(made, ScriptedLabeler(), source="scripted")
