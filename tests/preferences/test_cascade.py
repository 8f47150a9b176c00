"""A cheap labeler whose uncertain pairs go to a better one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from painted_segments import painted_store
from tiny import awake_model

from vlp_gym.models.cascade import CascadeModel
from vlp_gym.preferences import CascadeLabeler, Gate, ModelLabeler, PreferenceLearner, Queries, ScriptedLabeler
from vlp_gym.preferences.cascade import gate_of

SENTENCE = "press the button"
SPANS = [(0, 0, 8), (1, 3, 11), (2, 0, 8), (5, 1, 9)], [(3, 0, 8), (0, 0, 8), (4, 5, 13), (2, 2, 10)]


class Hesitant:
    """Says what it is given, and remembers how many pairs it was asked about."""

    def __init__(self, *said: float) -> None:
        self.said, self.asked = np.array(said), 0

    def __call__(self, first, second):
        self.asked += len(first)
        return self.said[: len(first)]


def segments():
    store = painted_store()
    return store.cut(SPANS[0]), store.cut(SPANS[1])


class Answers:
    """Answers by the episode of the first segment, and remembers how many pairs each call was about."""

    def __init__(self, *by_episode: float) -> None:
        self.by_episode, self.calls, self.interrupted = by_episode, [], False

    def __call__(self, first, second):
        self.calls.append(len(first))
        return np.array([self.by_episode[span.episode] for span in first.spans])


def test_uncertain_pairs_are_labelled_by_the_other_one() -> None:
    first, second = segments()
    above = Answers(np.nan, 1.0, np.nan, np.nan, np.nan, np.nan)
    labeler = CascadeLabeler(Hesitant(0.9, 0.4, 0.1, np.nan), above, Gate(0.2))
    labels = labeler(first, second)
    assert np.isnan(labels[3])  # skipped by the better one, too
    assert (labels[1], labeler.gate.asked) == (1.0, 4)
    certain = Answers()
    labeler = CascadeLabeler(Hesitant(0.9, 0.9, 0.1, 0.1), certain, Gate(0.2))
    assert labeler(first, second).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert certain.calls == []  # nobody is disturbed for nothing
    soft = CascadeLabeler(Hesitant(0.9, 0.4, 0.1, 0.55), Answers(), Gate(0.2, budget=0), soft=True)
    assert soft(first, second).tolist() == [0.9, 0.4, 0.1, 0.55]


def test_the_least_certain_pair_is_asked_about_first() -> None:
    first, second = segments()
    labeler = CascadeLabeler(Hesitant(0.9, 0.4, 0.1, 0.55), Answers(0, 0, 0, 0, 0, 1.0), Gate(0.2, budget=1), soft=True)
    labels = labeler(first, second)
    assert labels[3] == 1.0
    assert labels[:3].tolist() == labeler.correction(first, second, np.array([0.9, 0.4, 0.1, 0.55]))[:3].tolist()
    assert labels[0] != 0.9  # what was learned changes the others


def test_pairs_go_up_in_rounds() -> None:
    """Each round knows the answers before, and none has more than a 16th, rounded up, of what may be sent."""
    rows = np.resize(np.arange(4), 80)
    first, second = (side[rows] for side in segments())
    above = Answers(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    CascadeLabeler(Hesitant(*[0.5] * 80), above, Gate(0.5, share=0.5))(first, second)
    assert above.calls == [2, 3] * 8


def test_a_person_who_goes_is_not_asked_again() -> None:
    first, second = segments()

    class Leaving(Answers):
        def __call__(self, first, second):
            self.interrupted = True
            return super().__call__(first, second)

    above = Leaving(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    labeler = CascadeLabeler(Hesitant(0.9, 0.5, 0.55, 0.1), above, Gate(0.5, share=0.5))
    labels = labeler(first, second)
    assert above.calls == [1]
    assert (np.isnan(labels).sum(), labels[1]) == (1, 1.0)  # the other one of two waits for the person
    assert labeler.interrupted


def test_a_real_model_below_a_scripted_teacher() -> None:
    first, second = segments()
    small = ModelLabeler(awake_model(), SENTENCE, soft=True)
    labeler = CascadeLabeler(small, ScriptedLabeler(), Gate(0.5, share=0.5))
    labels = labeler(first, second)
    truth = (np.sign(first.returns - second.returns) + 1) / 2
    least = np.argmin(np.abs(small(first, second) - 0.5))
    assert labels[least] == truth[least]
    assert (labeler.gate.asked, labeler.gate.sent, len(labeler.correction)) == (4, 2, 2)
    assert CascadeLabeler(small, ScriptedLabeler(), Gate(0.5))(first, second).tolist() == truth.tolist()


def test_a_model_labeler_knows_the_gate_of_its_cascade() -> None:
    model = CascadeModel(awake_model(), awake_model(), Gate(0.5, budget=3))
    labeler = ModelLabeler(model, SENTENCE)
    assert gate_of(labeler) is model.gate
    labeler(*segments())
    assert (model.gate.asked, model.gate.sent) == (8, 3)  # four pairs, in both orders
    assert gate_of(ScriptedLabeler()) is None
    assert gate_of(ModelLabeler(awake_model(), SENTENCE)) is None


def learned(labeler, steps=range(1, 41)) -> PreferenceLearner:
    queries = Queries(budget=12, session=6, every=15, explore=20, length=4)
    learner = PreferenceLearner(labeler, queries, hidden=(16,))
    learner.start(1, 1)
    rng = np.random.default_rng(0)
    for step in steps:
        learner.add_step(0, rng.normal(size=1), rng.normal(size=1), float(step % 7), step % 10 == 0)
        if learner.due(step):
            learner.session(step, 60)
    return learner


def test_sessions_say_how_many_were_sent_and_the_budget_outlives_a_restart(tmp_path: Path) -> None:
    learner = learned(CascadeLabeler(Hesitant(*[0.5] * 6), ScriptedLabeler(), Gate(0.5, budget=8)))
    assert [row["sent_up"] for row in learner.history] == [6, 8]
    learner.save(tmp_path)
    again = PreferenceLearner(
        CascadeLabeler(Hesitant(*[0.5] * 6), ScriptedLabeler(), Gate(0.5, budget=8)), learner.queries, hidden=(16,)
    )
    again.restore(tmp_path)
    gate = again.labeler.gate
    assert (gate.asked, gate.sent) == (12, 8)
    for name, tensor in learner.correction.pack()[1].items():  # what was learned from the 8 as well
        assert torch.equal(again.labeler.correction.pack()[1][name], tensor)
    assert len(again.labeler.correction) == 8
    assert not len(gate.choose(np.full(4, 0.5)))
    assert [row["sent_up"] for row in again.history] == [6, 8]


def test_without_a_cascade_nothing_is_said_of_it(tmp_path: Path) -> None:
    learner = learned(ScriptedLabeler())
    assert all("sent_up" not in row for row in learner.history)
    assert "gate" not in learner.pack()[0]
    learner.save(tmp_path)
    other = PreferenceLearner(CascadeLabeler(Hesitant(0.5), ScriptedLabeler()), learner.queries, hidden=(16,))
    other.restore(tmp_path)  # counted from 0
    assert other.labeler.gate.asked == 0


def test_models_of_a_cascade_look_at_frames() -> None:
    small = ModelLabeler(awake_model(), SENTENCE, soft=True)
    with pytest.raises(ValueError) as caught:
        PreferenceLearner(CascadeLabeler(small, ScriptedLabeler()))
    assert str(caught.value) == "the models of a cascade look at frames, each at its own tokens; give keep_frames=112"
    PreferenceLearner(CascadeLabeler(small, ScriptedLabeler()), keep_frames=32)


def test_what_is_no_labeler_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a labeler"):
        CascadeLabeler(ScriptedLabeler(), "human")  # type: ignore[arg-type]
