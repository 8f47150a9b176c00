"""Labels of segment pairs: from scripted teachers, from rewards that were paid, and from reward models."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from painted import frame
from tiny import tiny_model

from vlp_gym import VLPRewardWrapper
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.models.protocol import Scores
from vlp_gym.preferences import PreferenceLearner
from vlp_gym.preferences.labelers import ModelLabeler, RecordedLabeler, ScriptedLabeler, as_labels, decide
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.rewards.info import ticket_in
from vlp_gym.testing import PaintedEnv, PaintedModel

SENTENCE = "press the button"


def sigmoid(value):
    return 1.0 / (1.0 + np.exp(-np.asarray(value, np.float64)))


def seeded_model():
    torch.manual_seed(0)
    return tiny_model().eval()


def recorded(scores, length=3, **options) -> SegmentStore:
    """Episodes whose step t had the score ``scores[episode][t - 1]``, None for one that was not looked at."""
    store = SegmentStore(length, **options)
    for episode, row in enumerate(scores):
        for step, score in enumerate(row, start=1):
            store.add(0, np.zeros(2), np.zeros(1), float(step * (episode + 1)), Ticket(0, episode, step))
            if score is not None:
                answer = Answer(Ticket(0, episode, step), FrameScore(score, score, None))
                store.on_answer(answer, frame(0, episode, step)[None], torch.full((1, 1, 1), float(score)))
        store.end(0)
    return store


def test_the_larger_sum_of_recorded_rewards_wins():
    store = recorded([[0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.0, 0.0]])
    first = store.cut([(0, 0, 3), (0, 1, 4), (0, 0, 2)])
    second = store.cut([(1, 0, 3), (1, 1, 4), (1, 0, 1)])
    assert RecordedLabeler()(first, second).tolist() == [0.5, 1.0, 0.5]  # 0.6 and 0.6, 0.9 and 0.3, 0.3 and 0.3
    soft = RecordedLabeler(soft=True)(first, second)
    np.testing.assert_allclose(soft, sigmoid([0.0, 0.6, 0.0]), atol=1e-12)
    skipping = RecordedLabeler(margin=0.1)(first, second)
    assert np.isnan(skipping).tolist() == [True, False, True]


def test_a_step_without_a_score_has_the_one_before():
    store = recorded([[None, 0.5, None, 0.1], [0.2, None, None, 0.9]])
    first, second = store.cut([(0, 1, 4)]), store.cut([(1, 1, 4)])
    soft = RecordedLabeler(soft=True)(first, second)
    np.testing.assert_allclose(soft, sigmoid([(0.5 + 0.5 + 0.1) - (0.2 + 0.2 + 0.9)]), atol=1e-12)
    with pytest.raises(QueryError, match=r"^scores are missing of Span\(episode=0, start=0, stop=2\); wrap "):
        RecordedLabeler()(store.cut([(0, 0, 2)]), second)


def test_scripted_labels_follow_the_true_return():
    store = recorded([[None] * 4, [None] * 4])  # rewards 1, 2, 3, 4 and 2, 4, 6, 8
    first, second = store.cut([(0, 0, 3), (0, 1, 4)]), store.cut([(1, 0, 3), (1, 0, 2)])
    assert ScriptedLabeler()(first, second).tolist() == [0.0, 1.0]
    drawn = np.concatenate([ScriptedLabeler("mistake", seed)(first, second) for seed in range(200)])
    assert 0.05 < np.mean(drawn.reshape(-1, 2) != [0.0, 1.0]) < 0.15


@pytest.mark.parametrize("margin", [-0.1, 0.5, float("nan")])
def test_a_margin_leaves_something_to_label(margin):
    with pytest.raises(ValueError, match=r"^margin must be in \[0, 0.5\), got "):
        RecordedLabeler(margin=margin)


def test_decide():
    labels = decide(np.array([0.9, 0.3, 0.52, 0.5]), 0.05, soft=False)
    assert labels[:2].tolist() == [1.0, 0.0]
    assert np.isnan(labels[2:]).all()


@pytest.fixture(scope="module")
def played():
    """A real model's view of two episodes: the store, the frames and the rewards of the mode "sync"."""
    model = seeded_model()
    engine = QueryEngine(model, mode="async")
    store = SegmentStore(5, frame_size=64)
    engine.on_answer = store.on_answer
    late = VLPRewardWrapper(PaintedEnv([9, 7]), SENTENCE, engine, untaken="wait")
    known = VLPRewardWrapper(PaintedEnv([9, 7]), SENTENCE, model, mode="sync")
    frames, rewards = [], []
    for _ in range(2):
        known.reset()
        _, info = late.reset()
        frames.append([late.render()])
        rewards.append([])
        over = False
        while not over:
            _, _, over, _, info = late.step(0)
            frames[-1].append(late.render())
            rewards[-1].append(known.step(0)[1])
            store.add(0, np.zeros(2), np.zeros(1), 0.0, ticket_in(info["vlp"]))
        store.end(0)
    late.flush()
    yield engine, store, [np.stack(video) for video in frames], rewards
    engine.close()


SPANS = [(0, 0, 5), (0, 4, 9), (1, 2, 6)], [(1, 0, 5), (1, 3, 7), (0, 3, 5)]


def test_the_engine_shows_each_frame_its_tokens_and_its_score(played):
    engine, store, frames, rewards = played
    records = store.cut(SPANS[0]).episodes
    for record, video, paid in zip((records[0], records[2]), frames, rewards, strict=True):
        with torch.inference_mode():
            tokens = engine.model.model.encode_frames(torch.from_numpy(video))
        assert sorted(record.tokens) == sorted(record.scores) == list(range(len(video)))
        for step, token in record.tokens.items():
            torch.testing.assert_close(token[0], tokens[step], atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose([record.scores[step + 1] for step in range(len(paid))], paid, atol=1e-5)


def test_a_model_compares_whole_segments(played):
    engine, store, frames, _ = played
    values = []
    for spans in SPANS:
        row = []
        for episode, start, stop in spans:
            scorer = VideoScorer(engine.model.model, [SENTENCE])
            scorer.open(frames[episode][start : stop + 1], "clip")
            row.append(scorer.preferences([(0, stop + 1 - start)], [SENTENCE])[0])
        values.append(np.array(row))
    expected = sigmoid(values[0] - values[1])
    first, second = (store.cut(spans) for spans in SPANS)
    soft = ModelLabeler(engine, SENTENCE, soft=True)(first, second)
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    assert ModelLabeler(engine, SENTENCE)(first, second).tolist() == (expected > 0.5).astype(float).tolist()


def test_a_model_compares_sums_of_rewards(played):
    engine, store, _, rewards = played
    sums = [[sum(rewards[episode][start:stop]) for episode, start, stop in spans] for spans in SPANS]
    first, second = (store.cut(spans) for spans in SPANS)
    soft = ModelLabeler(engine, SENTENCE, kind="reward", soft=True)(first, second)
    np.testing.assert_allclose(soft, sigmoid(np.subtract(*sums)), atol=1e-4)
    np.testing.assert_allclose(RecordedLabeler(soft=True)(first, second), soft, atol=1e-4)


def test_another_model_looks_at_the_frames(played):
    """A model that was given by itself did not encode the tokens that are kept."""
    _, store, _, _ = played
    first, second = (store.cut(spans) for spans in SPANS)
    other = seeded_model()
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05
    records = [*first.episodes, *second.episodes]
    expected = ModelLabeler(other, SENTENCE, soft=True)(first, second)
    kept = [record.tokens for record in records]
    for record in records:
        record.tokens = {}
    without = ModelLabeler(other, SENTENCE, soft=True)(first, second)
    for record, tokens in zip(records, kept, strict=True):
        record.tokens = tokens
    np.testing.assert_array_equal(expected, without)


class OneSided(PaintedModel):
    """A pairwise head that likes what comes first."""

    def prefer(self, a, b, text):
        return torch.sigmoid(a[:, -1, 0, 0] - b[:, -1, 0, 0] + 0.7)


def test_a_pairwise_head_is_asked_in_both_orders():
    store = recorded([[0.5, 0.25, 1.0], [0.125, 0.75, 0.5]])
    first, second = store.cut([(0, 0, 3), (1, 0, 2)]), store.cut([(1, 0, 3), (0, 0, 2)])
    soft = ModelLabeler(QueryEngine(OneSided()), SENTENCE, soft=True)(first, second)
    difference = np.array([1.0 - 0.5, 0.75 - 0.25])
    expected = (sigmoid(difference + 0.7) + 1.0 - sigmoid(-difference + 0.7)) / 2
    np.testing.assert_allclose(soft, expected, atol=1e-6)
    swapped = ModelLabeler(QueryEngine(OneSided()), SENTENCE, soft=True)(second, first)
    np.testing.assert_allclose(soft + swapped, 1.0, atol=1e-6)
    one = torch.ones(1, 1, 1, 1)
    assert GuardedModel(OneSided()).prefer(one, one, one[0], where="test").item() != 0.5  # asked once, it has a side


def test_what_a_labeler_cannot_do():
    store = recorded([[0.5] * 3, [0.25] * 3], keep_tokens=False)
    first, second = store.cut([(0, 0, 3)]), store.cut([(1, 0, 3)])
    message = (
        "Span(episode=0, start=0, stop=3) has no frames; keep tokens (SegmentStore(keep_tokens=True)) or frames "
        "(frame_size=112), and wrap the environment so that a model looks at it"
    )
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        ModelLabeler(PaintedModel(), SENTENCE)(first, second)
    with pytest.raises(ValueError, match=r"^kind must be one of \('reward', 'preference'\), got 'progress'$"):
        ModelLabeler(PaintedModel(), SENTENCE, kind="progress")
    with pytest.raises(InstructionError):
        ModelLabeler(PaintedModel(), "  ")


class Wrong(PaintedModel):
    """Answers NaN, by its scores and by its pairwise head."""

    def score(self, frames, text, mask):
        return Scores(torch.full((len(text),), torch.nan), torch.full(mask.shape, torch.nan))


class WrongPair(PaintedModel):
    def prefer(self, a, b, text):
        return torch.full((len(text),), torch.nan)


@pytest.mark.parametrize(("model", "kind"), [(Wrong, "preference"), (Wrong, "reward"), (WrongPair, "preference")])
def test_nan_is_an_error_and_no_skipped_label(model, kind):
    store = recorded([[0.5] * 3, [0.25] * 3])
    labeler = ModelLabeler(model(), SENTENCE, kind=kind)
    with pytest.raises(QueryError, match=r"^the reward model gave the .* nan, which no reward may have \(.*\)$"):
        labeler(store.cut([(0, 0, 3)]), store.cut([(1, 0, 3)]))


class Broken(PaintedModel):
    def prefer(self, a, b, text):
        return 1 / 0


def test_an_error_of_a_pairwise_head_says_what_and_where():
    store = recorded([[0.5] * 3, [0.25] * 3])
    message = "the reward model raised ZeroDivisionError: division by zero (1 pairs of segments)"
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        ModelLabeler(Broken(), SENTENCE)(store.cut([(0, 0, 3)]), store.cut([(1, 0, 3)]))


class SinceTheStart(PaintedModel):
    """Its preference is the last frame's value minus that of the first one, masked out or not."""

    anchored = True

    def score(self, frames, text, mask):
        self.masks = mask.tolist()
        return Scores(frames[:, -1, 0, 0] - frames[:, 0, 0, 0])


def test_a_model_that_measures_from_the_start_gets_the_episodes_first_frame():
    model = SinceTheStart()
    engine = QueryEngine(model, window=2)
    store = recorded([[0.0, 0.25, 0.5, 1.0], [0.75, 0.25, 0.5, 0.5]])
    first, second = store.cut([(0, 1, 4)]), store.cut([(1, 1, 4)])
    soft = ModelLabeler(engine, SENTENCE, soft=True)(first, second)
    np.testing.assert_allclose(soft, sigmoid([(1.0 - 0.0) - (0.5 - 0.75)]), atol=1e-6)
    assert model.masks == [[False, True, True]]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list, lambda rows: torch.tensor(rows, dtype=torch.float16)])
def test_labels_may_come_as_any_array(kind):
    given = as_labels(kind([1.0, 0.0, 0.5, float("nan")]), 4, len)
    assert given.dtype == np.float64
    np.testing.assert_array_equal(given, [1.0, 0.0, 0.5, np.nan])


@pytest.mark.parametrize(
    ("labels", "got"),
    [(np.ones(3), "float64 [3]"), (["a", "b"], "<U1 [2]"), (np.ones((2, 1)), "float64 [2, 1]"), ([0.5, 2.0], "2.0")],
)
def test_labels_that_are_none_name_the_labeler(labels, got):
    message = f"expected 2 labels in [0, 1], or NaN to skip a pair, from the labeler RecordedLabeler, got {got}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_labels(labels, 2, RecordedLabeler())


@pytest.mark.parametrize(
    ("labeler", "got"),
    [(RecordedLabeler, "the class RecordedLabeler; make one: RecordedLabeler(...)"), ("human", "'human'")],
)
def test_a_labeler_is_checked_before_the_first_step(labeler, got):
    message = f"expected a labeler, called with first and second segments, got {got}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        PreferenceLearner(labeler)
