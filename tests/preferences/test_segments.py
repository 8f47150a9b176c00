from __future__ import annotations

import itertools
import math
import re
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from painted_segments import painted_store

from tests.stored import check_refused
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.errors import CheckpointError, QueryError
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.preferences.segments import Segments, Span
from vlp_gym.storage import write_pair

FRAMES = np.zeros((1, 8, 8, 3), np.uint8)
TOKENS = torch.zeros(1, 2, 3)


def add_episode(store: SegmentStore, steps: int, *, env: int = 0, episode: int | None = None, end: bool = True) -> None:
    """Steps whose states, actions and rewards are 1, 2, ...; with an episode's number, they have tickets."""
    for step in range(1, steps + 1):
        ticket = None if episode is None else Ticket(env, episode, step)
        store.add(env, np.full(2, step), np.array([-step]), 10.0 * step, ticket)
    if end:
        store.end(env)


def filled_store(*steps: int, length: int = 4, episodes: int = 100) -> SegmentStore:
    store = SegmentStore(length, episodes)
    for count in steps:
        add_episode(store, count)
    return store


def see(store: SegmentStore, env: int, episode: int, step: int, progress: float | None = 0.5) -> None:
    """An answer whose frame and tokens hold the step."""
    answer = Answer(Ticket(env, episode, step), FrameScore(-3.0, progress, None))
    store.on_answer(answer, FRAMES + np.uint8(step), TOKENS + step)


def test_segments_are_cut_and_padded_at_the_end():
    segments = filled_store(6, 3).cut([(0, 1, 5), (1, 0, 3), (0, 5, 6)])
    assert segments.states[:, :, 0].tolist() == [[2, 3, 4, 5], [1, 2, 3, 0], [6, 0, 0, 0]]
    assert segments.actions[:, :, 0].tolist() == [[-2, -3, -4, -5], [-1, -2, -3, 0], [-6, 0, 0, 0]]
    assert segments.rewards.tolist() == [[20, 30, 40, 50], [10, 20, 30, 0], [60, 0, 0, 0]]
    assert segments.mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] + [False] * 3]
    assert segments.returns.tolist() == [140.0, 60.0, 60.0]
    assert segments.spans == (Span(0, 1, 5), Span(1, 0, 3), Span(0, 5, 6))
    assert [record.number for record in segments.episodes] == [0, 1, 0]
    assert {block.dtype for block in (segments.states, segments.actions, segments.rewards)} == {np.dtype(np.float32)}


def test_segments_are_picked_and_joined():
    segments = filled_store(6).cut([(0, 0, 4), (0, 1, 5), (0, 2, 6)])
    picks = [segments[1:], segments[[2, 0]], segments[np.array([True, False, True])], segments[[]]]
    assert [[span.start for span in pick.spans] for pick in picks] == [[1, 2], [2, 0], [0, 2], []]
    assert picks[1].states[:, 0, 0].tolist() == [3, 1]
    joined = Segments.join(picks)
    assert [span.start for span in joined.spans] == [1, 2, 2, 0, 0, 2]
    assert joined.rewards[:, 0].tolist() == [20, 30, 30, 10, 10, 30]
    assert len(joined) == len(joined.episodes) == len(joined.mask) == 6


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 2, 2), "Span(episode=0, start=2, stop=2): expected steps within the episode's 6, at least one"),
        ((0, 3, 2), "Span(episode=0, start=3, stop=2): expected steps within the episode's 6, at least one"),
        ((0, -1, 2), "Span(episode=0, start=-1, stop=2): expected steps within the episode's 6, at least one"),
        ((0, 4, 7), "Span(episode=0, start=4, stop=7): expected steps within the episode's 6, at least one"),
        ((0, 0, 5), "Span(episode=0, start=0, stop=5): expected at most 4 steps"),
        (
            (2, 0, 1),
            "Span(episode=2, start=0, stop=1): there is no such finished episode; the store has [0] and on",
        ),
    ],
)
def test_spans_that_cannot_be_cut(span, message):  # fault 51
    store = filled_store(6, 6)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        store.cut([(0, 0, 1), span])


def test_settings_and_draws_that_make_no_sense():
    with pytest.raises(ValueError, match=r"^length and episodes must be at least 1, got 0 and 3$"):
        SegmentStore(0, 3)
    with pytest.raises(ValueError, match=r"^expected at least one span$"):
        filled_store(6).cut([])
    message = "expected at least one finished episode to draw segments from, got none"
    with pytest.raises(ValueError, match=f"^{message}$"):
        SegmentStore().sample(1, np.random.default_rng(0))
    for newest in (0, -2):
        with pytest.raises(ValueError, match=f"^newest must be at least 1, or None for all, got {newest}$"):
            filled_store(6).sample(1, np.random.default_rng(0), newest=newest)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 9))
def test_drawn_segments_are_as_long_as_their_episode_allows(steps, length, seed):
    store = filled_store(*steps, length=length)
    for span in store.sample(20, np.random.default_rng(seed)).spans:
        assert 0 <= span.start < span.stop <= steps[span.episode]
        assert span.stop - span.start == min(length, steps[span.episode])


def test_every_place_of_every_episode_is_as_likely():
    count = 6000
    spans = filled_store(3, 5).sample(count, np.random.default_rng(0)).spans
    shares = {(span.episode, span.start): spans.count(span) / count for span in set(spans)}
    assert shares == {  # half of all from each; a long one has two places
        (0, 0): pytest.approx(0.5, abs=0.03),
        (1, 0): pytest.approx(0.25, abs=0.03),
        (1, 1): pytest.approx(0.25, abs=0.03),
    }


def test_the_newest_finished_episodes_are_kept():
    store = filled_store(3, 3, 3, 3, episodes=3)
    add_episode(store, 2, env=1, end=False)
    assert len(store) == 3
    assert store.numbers == [1, 2, 3]
    rng = np.random.default_rng(0)
    assert {span.episode for span in store.sample(200, rng).spans} == {1, 2, 3}
    assert {span.episode for span in store.sample(200, rng, newest=2).spans} == {2, 3}
    assert {span.episode for span in store.sample(200, rng, newest=99).spans} == {1, 2, 3}
    with pytest.raises(ValueError, match="there is no such finished episode"):
        store.cut([(4, 0, 1)])  # it still runs
    store.end(1)
    assert store.numbers == [2, 3, 4]
    store.end(1)  # without a step, nothing is over
    assert store.numbers == [2, 3, 4]


def test_environments_do_not_mix():
    store = SegmentStore(4)
    for step in range(1, 4):
        for env in (0, 1):
            store.add(env, np.full(2, step + 10 * env), np.zeros(1), 0.0)
    store.end(1)
    store.end(0)
    segments = store.cut([(0, 0, 3), (1, 0, 3)])  # numbered as they began
    assert segments.states[:, :3, 0].tolist() == [[1, 2, 3], [11, 12, 13]]
    assert store.numbers == [1, 0]  # kept in the order they ended


def test_a_state_that_is_reused_is_copied():
    store, state = SegmentStore(2), np.zeros(2, np.float32)
    for value in (1.0, 2.0):
        state[:] = value
        store.add(0, state, state, value)
    store.end(0)
    assert store.cut([(0, 0, 2)]).states[0, :, 0].tolist() == [1, 2]


@pytest.mark.parametrize("order", list(itertools.permutations([0, 1, 2, 3])))
def test_answers_come_in_any_order(order):
    store = SegmentStore(4, frame_size=8)
    add_episode(store, 3, episode=7)
    for step in order:
        see(store, 0, 7, step, progress=step / 10)
    (record,) = store.cut([(0, 0, 3)]).episodes
    assert record.scores == {step: step / 10 for step in range(4)}
    assert {step: int(frame[0, 0, 0]) for step, frame in record.frames.items()} == {step: step for step in range(4)}
    assert {step: float(tokens[0, 0, 0]) for step, tokens in record.tokens.items()} == {step: step for step in range(4)}


def test_a_reset_frame_may_come_before_the_first_step():
    store = SegmentStore(4)
    see(store, 0, 0, 0, 0.25)
    add_episode(store, 3, episode=0)
    see(store, 0, 1, 0, 0.75)  # of the next episode, while this one is looked at
    assert store.cut([(0, 0, 3)]).episodes[0].scores == {0: 0.25}
    see(store, 1, 0, 0, 0.125)  # of another environment
    assert store.cut([(0, 0, 3)]).episodes[0].scores == {0: 0.25}
    add_episode(store, 3, episode=1)
    add_episode(store, 3, env=1, episode=0)
    scores = [record.scores for record in store.cut([(1, 0, 3), (2, 0, 3)]).episodes]
    assert scores == [{0: 0.75}, {0: 0.125}]


def test_late_answers_of_finished_episodes_are_taken_and_of_forgotten_ones_dropped():
    store = SegmentStore(4, episodes=2)
    for episode in range(4):
        add_episode(store, 2, episode=episode)
    see(store, 0, 0, 2, 0.1)  # forgotten
    see(store, 0, 2, 2, 0.2)
    see(store, 0, 3, 1, 0.3)
    scores = [record.scores for record in store.cut([(2, 0, 2), (3, 0, 2)]).episodes]
    assert scores == [{2: 0.2}, {1: 0.3}]
    assert not store._seen


def test_answers_come_from_another_thread():
    store, episodes, steps = SegmentStore(4, episodes=50), 40, 20
    ready: list[threading.Event] = [threading.Event() for _ in range(episodes)]

    def answer() -> None:
        for episode, event in enumerate(ready):
            event.wait(10)
            for step in reversed(range(steps + 1)):
                see(store, 0, episode, step, step / 100)

    thread = threading.Thread(target=answer)
    thread.start()
    for episode, event in enumerate(ready):
        event.set()
        add_episode(store, steps, episode=episode)
        store.sample(2, np.random.default_rng(0))  # takes in what there is, while more comes
    thread.join()
    records = store.cut([(episode, 0, 1) for episode in range(episodes)]).episodes
    assert [record.scores for record in records] == [{step: step / 100 for step in range(steps + 1)}] * episodes


def test_what_is_kept_of_an_answer():
    store = SegmentStore(4, keep_tokens=False, frame_size=4)
    add_episode(store, 3, episode=0)
    views = np.concatenate([FRAMES + np.uint8(9), FRAMES])
    tokens = torch.zeros(2, 2, 3)
    store.on_answer(Answer(Ticket(0, 0, 1), FrameScore(-3.0, 0.8, 0.0)), views, tokens)
    store.on_answer(Answer(Ticket(0, 0, 2), FrameScore(-3.0, None, None)), views, tokens)
    store.on_answer(Answer(Ticket(0, 0, 3), None, QueryError("broken")), views, tokens)
    (record,) = store.cut([(0, 0, 3)]).episodes
    assert record.scores == {1: 0.8 * 0.5, 2: -3.0}  # progress through the gate, or the preference; no error
    assert record.tokens == {}
    assert {step: (frame.shape, frame.min()) for step, frame in record.frames.items()} == {
        1: ((4, 4, 3), 9), 2: ((4, 4, 3), 9),
    }  # fmt: skip


def test_frames_and_tokens_are_copies():
    store, frames, tokens = SegmentStore(4, frame_size=8), FRAMES.copy(), TOKENS.clone()
    add_episode(store, 3, episode=0)
    store.on_answer(Answer(Ticket(0, 0, 1), FrameScore(0.0, 0.5, None)), frames, tokens)
    frames += 5
    tokens += 5
    (record,) = store.cut([(0, 0, 3)]).episodes
    assert record.frames[1].max() == 0
    assert record.tokens[1].max() == 0


def test_a_saved_store_comes_back(tmp_path):
    store = SegmentStore(4, episodes=3, frame_size=8)
    add_episode(store, 6, episode=0)
    add_episode(store, 2)
    add_episode(store, 5, env=1, episode=0)
    add_episode(store, 1, end=False)  # runs, and is not saved
    for step in (3, 0, 1):
        see(store, 0, 0, step, step / 8)
    store.save(tmp_path)
    back = SegmentStore.load(tmp_path)
    names = ("length", "episodes", "keep_tokens", "frame_size", "numbers")
    assert [getattr(back, name) for name in names] == [getattr(store, name) for name in names]
    spans = [(0, 1, 5), (1, 0, 2), (2, 1, 5)]
    ours, theirs = store.cut(spans), back.cut(spans)
    for name in ("states", "actions", "mask", "rewards"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for one, other in zip(ours.episodes, theirs.episodes, strict=True):
        assert one.scores == other.scores
        for kept in ("tokens", "frames"):
            mine, its = getattr(one, kept), getattr(other, kept)
            assert mine.keys() == its.keys()
            for step, value in mine.items():
                assert type(value) is type(its[step])
                np.testing.assert_array_equal(value, its[step])
    assert theirs.episodes[0].scores == {0: 0.0, 1: 0.125, 3: 0.375}
    same = [copy.sample(9, np.random.default_rng(1)).spans for copy in (store, back)]
    assert same[0] == same[1]
    add_episode(back, 2)
    assert back.numbers == [1, 2, 4]  # number 3 was the running one's


def test_an_empty_store_comes_back(tmp_path):
    SegmentStore(4).save(tmp_path)
    assert len(SegmentStore.load(tmp_path)) == 0


def test_another_format_is_refused(tmp_path):
    write_pair(tmp_path, {"format": 2}, {}, stem="segments")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/segments.json: format: expected 1, got 2$"):
        SegmentStore.load(tmp_path)


def test_what_was_seen_goes_with_its_episode():
    """A run whose budget is used up asks for no segments any more, and must not fill the memory."""
    store = SegmentStore(3, 4)
    for episode in range(50):
        for step in range(4):
            see(store, 0, episode, step)
        add_episode(store, 3, episode=episode)
    assert not store._seen
    assert len(store._tickets) <= 5


def test_an_episode_with_a_gap_is_left_out_until_it_ends():
    """A training begins in its middle, or an interrupt came between the environment's step and this."""
    store = SegmentStore(4)

    def add(episode, *steps, end=True):
        for step in steps:
            store.add(0, np.full(1, step), np.zeros(1), 0.0, Ticket(0, episode, step))
        if end:
            store.end(0)

    add(0, 3, 4, 5)
    add(1, 1, 2, 4, 5)
    add(2, 1, 2, end=False)
    add(3, 3, 4)
    add(4, 1, 2, 3)
    assert [len(store._finished[number].states) for number in store.numbers] == [3]


def test_after_a_reset_nothing_goes_on():
    store = SegmentStore(4)
    add_episode(store, 3, episode=0)
    see(store, 0, 0, 1, 0.25)
    add_episode(store, 2, episode=1, end=False)
    store.forget_running()  # another environment, whose tickets begin at 0 again
    add_episode(store, 4, episode=0)
    see(store, 0, 0, 1, 0.75)
    records = store.cut([(number, 0, 1) for number in store.numbers]).episodes
    assert [len(record.states) for record in records] == [3, 4]
    assert [record.scores for record in records] == [{1: 0.25}, {1: 0.75}]


def test_places():
    store = filled_store(3, 5, 6)
    assert store.places() == 1 + 2 + 3
    assert store.places(2) == 2 + 3
    assert SegmentStore(4).places() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(length=0), "length: expected greater than or equal to 1, got 0"),
        (lambda d, t: d.update(numbers=[0, 0]), "numbers: expected at most 3 different ones below 2, got 2 up to 0"),
        (lambda d, t: d.update(numbers=[0, 7]), "numbers: expected at most 3 different ones below 2, got 2 up to 7"),
        (
            lambda d, t: d.update(numbers=[1]),
            "unknown tensors: 0.actions, 0.frames, 0.frames.steps, 0.rewards, 0.scores, 0.states, 0.tokens, "
            "0.tokens.steps",
        ),
        (lambda d, t: t["0.states"].fill_(math.nan), "0.states: expected finite numbers, got NaN or inf"),
        (lambda d, t: t.update({"1.states": torch.ones(4, 9)}), "1.states: expected the shape [T1, 3], got [4, 9]"),
        (lambda d, t: t.update({"1.rewards": torch.ones(3)}), "1.rewards: expected the shape [4], got [3]"),
        (lambda d, t: t.pop("0.frames"), "missing tensors: 0.frames"),
        (lambda d, t: t["0.frames.steps"].fill_(2), "0.frames: expected rising steps from 0 to 4"),
        (lambda d, t: t["0.scores"].fill_(0.5), "0.scores: expected rising steps from 0 to 4"),
        (lambda d, t: t["1.tokens.steps"].add_(1), "1.tokens: expected rising steps from 0 to 4"),
    ],
)
def test_content_that_is_refused(tmp_path, change, message):
    store = painted_store(episodes=2, steps=4, length=3, size=8)
    store.episodes = 3
    check_refused(store, tmp_path, change, message)


def test_a_store_that_could_not_be_loaded_is_not_saved(tmp_path):
    store = SegmentStore(3)
    store.add(0, np.array([math.nan]), np.zeros(1), 0.0)
    store.end(0)
    message = f"{tmp_path} was not saved: 0.states: expected finite numbers, got NaN or inf"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        store.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"length": 10_001}, {"frame_size": 4_097}, {"frame_size": -1}])
def test_settings_that_would_take_all_memory(settings):
    length, size = settings.get("length", 50), settings.get("frame_size", 0)
    message = f"length and frame_size must be at most 10,000 steps and 4,096 pixels, got {length} and {size}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SegmentStore(**settings)


def test_an_episode_from_elsewhere_is_stored_as_one_that_was_seen():
    rng = np.random.default_rng(0)
    states, actions, rewards = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=5)
    pictures = {step: np.full((6, 6, 3), step, np.uint8) for step in (0, 3)}
    store = SegmentStore(4, frame_size=3)
    store.add(0, np.zeros(3), np.zeros(2), 0.0)  # an environment's episode goes on beside it
    number = store.put(states, actions, rewards, pictures)
    assert (len(store), store.numbers, store.steps(number)) == (1, [number], 5)
    segments = store.cut([(number, 1, 5)])
    np.testing.assert_array_equal(segments.states[0], states[1:].astype(np.float32))
    np.testing.assert_array_equal(segments.actions[0], actions[1:].astype(np.float32))
    np.testing.assert_array_equal(segments.rewards[0], rewards[1:].astype(np.float32))
    frames = segments.episodes[0].frames
    assert {step: (frame.shape, frame.max()) for step, frame in frames.items()} == {
        0: ((3, 3, 3), 0),
        3: ((3, 3, 3), 3),
    }
    plain = SegmentStore(4)
    assert plain.cut([(plain.put(states, actions, rewards, pictures), 0, 1)]).episodes[0].frames == {}
    for wrong in ((states[:0], actions[:0], rewards[:0]), (states, actions[:4], rewards)):
        counts = tuple(map(len, wrong))
        message = f"expected one state, action and reward for each of 1 or more steps, got {counts}"
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            store.put(*wrong)
