from __future__ import annotations

import itertools
import math
import re
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.reward import RewardEnsemble
from vlp_gym.preferences.samplers import (
    SAMPLERS,
    Candidates,
    Sampler,
    choose_pairs,
    greedy_k_center,
    mean_entropy,
)
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.preferences.segments import Segments

STATES, ACTIONS, LENGTH = 3, 2, 5
POINTS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=4, max_size=9)


def filled_store(episodes: int = 8, steps: int = 12, *, kinds: int = 1, seed: int = 0) -> SegmentStore:
    """Episodes of chance; those of the second kind, every other one, are far from the first."""
    rng = np.random.default_rng(seed)
    store = SegmentStore(LENGTH, 100)
    for episode in range(episodes):
        for _ in range(steps):
            state = rng.normal(size=STATES) + 100.0 * (episode % kinds)
            store.add(0, state, rng.normal(size=ACTIONS), 0.0)
        store.end(0)
    return store


@pytest.fixture(scope="module")
def ensemble() -> RewardEnsemble:
    return RewardEnsemble(STATES, ACTIONS, hidden=(8, 8))


@pytest.fixture
def pool(ensemble) -> Candidates:
    store, rng = filled_store(), np.random.default_rng(1)
    return Candidates(store.sample(40, rng), store.sample(40, rng), ensemble)


def chances(pool: Candidates) -> list[list[float]]:
    """P(first > second), a list of the members' for each pair."""
    assert pool.ensemble is not None
    return pool.ensemble.preferences(pool.first, pool.second).T.tolist()


def spread(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def entropy(values: list[float]) -> float:
    return -math.fsum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in values) / len(values)


@pytest.mark.parametrize(("name", "worth"), [("disagreement", spread), ("entropy", entropy)])
def test_the_most_uncertain_pairs_are_kept(pool, name, worth):
    worths = [worth(members) for members in chances(pool)]
    expected = sorted(range(40), key=lambda row: -worths[row])
    assert SAMPLERS[name](pool, 6, np.random.default_rng(0)).tolist() == expected[:6]
    covers = [set(SAMPLERS[f"k-center+{name}"](pool, 6, np.random.default_rng(seed)).tolist()) for seed in range(20)]
    assert set.union(*covers) <= set(expected[:20])
    assert not set.union(*covers) <= set(expected[:10])
    assert set(SAMPLERS[f"k-center+{name}"](pool, 30, np.random.default_rng(0)).tolist()) == set(expected[:30])


def test_the_entropy_is_the_mean_of_the_members_and_not_that_of_their_mean():
    torn, unsure, sure = [0.0, 1.0], [0.5, 0.5], [1.0, 1.0]
    np.testing.assert_allclose(mean_entropy(np.array([torn, unsure, sure]).T), [0.0, math.log(2), 0.0])


@given(POINTS, st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=3))
def test_each_centre_is_the_farthest_point(points, covered):
    count = len(points)
    chosen: list[int] = []
    for _ in range(count):
        near = [min(math.dist(p, c) for c in [*covered, *(points[row] for row in chosen)]) for p in points]
        chosen.append(max((row for row in range(count) if row not in chosen), key=lambda row: near[row]))
    rows = greedy_k_center(np.array(points), count, np.random.default_rng(0), np.array(covered))
    assert rows.tolist() == chosen


@given(POINTS, st.integers(1, 3), st.integers(0, 99))
def test_the_cover_is_at_most_twice_the_best(points, count, seed):
    def radius(rows) -> float:
        return max(min(math.dist(point, points[row]) for row in rows) for point in points)

    best = min(radius(rows) for rows in itertools.combinations(range(len(points)), count))
    assert radius(greedy_k_center(np.array(points), count, np.random.default_rng(seed)).tolist()) <= 2 * best + 1e-9


def test_the_first_centre_is_any():
    firsts = {int(greedy_k_center(np.eye(4), 1, np.random.default_rng(seed))[0]) for seed in range(60)}
    assert firsts == {0, 1, 2, 3}


def test_many_covered_points_are_all_seen():
    points = np.arange(5.0)[:, None]
    covered = np.concatenate([np.full((3000, 1), 4.0), [[0.0]]])  # the last one lies beyond two blocks
    assert greedy_k_center(points, 1, np.random.default_rng(0), covered).tolist() == [2]


def test_centres_go_by_states_and_keep_away_from_labelled_pairs(pool):
    labelled = PreferenceBuffer()
    labelled.add(pool.first[:39], pool.second[:39], np.ones(39))
    known = Candidates(pool.first, pool.second, None, labelled)
    assert SAMPLERS["k-center"](known, 1, np.random.default_rng(0)).tolist() == [39]

    first, second = pool.first, pool.second
    points = [[*first.states[row].ravel().tolist(), *second.states[row].ravel().tolist()] for row in range(40)]
    one = int(np.random.default_rng(3).integers(40))
    other = max(range(40), key=lambda row: math.dist(points[row], points[one]))
    assert SAMPLERS["k-center"](pool, 2, np.random.default_rng(3)).tolist() == [one, other]


def test_k_means_asks_across_two_kinds():
    store = filled_store(kinds=2)
    first, second = choose_pairs(store, None, 20, np.random.default_rng(0), sampler="k-means")
    kinds = [{a.episode % 2, b.episode % 2} for a, b in zip(first.spans, second.spans, strict=True)]
    assert kinds == [{0, 1}] * 20


def test_k_means_fills_up_where_too_few_are_across():
    store, rng = filled_store(kinds=2), np.random.default_rng(0)
    whole = store.sample(30, rng)
    one = whole[[row for row, span in enumerate(whole.spans) if span.episode % 2]]
    other = whole[[row for row, span in enumerate(whole.spans) if not span.episode % 2]]
    pairs = Candidates(Segments.join([one[:5], one[:2]]), Segments.join([one[5:10], other[:2]]))
    rows = SAMPLERS["k-means"](pairs, 4, rng).tolist()
    assert set(rows[:2]) == {5, 6}
    assert len({*rows}) == 4
    same = Candidates(one[[0] * 6], one[[0] * 6])  # no two sets at all
    assert sorted(SAMPLERS["k-means"](same, 6, rng).tolist()) == list(range(6))


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_what_every_sampler_keeps(ensemble, sampler):
    store = filled_store()
    first, second = choose_pairs(store, ensemble, 7, np.random.default_rng(2), sampler=sampler, newest=3, candidates=4)
    again = choose_pairs(store, ensemble, 7, np.random.default_rng(2), sampler=sampler, newest=3, candidates=4)
    assert (first.spans, second.spans) == (again[0].spans, again[1].spans)
    assert len(first) == len(second) == 7
    assert all(a != b for a, b in zip(first.spans, second.spans, strict=True))
    assert {span.episode for side in (first, second) for span in side.spans} <= {5, 6, 7}
    np.testing.assert_array_equal(first.states, store.cut(first.spans).states)


def test_the_registry_has_every_name():
    assert tuple(SAMPLERS) == get_args(Sampler)


def test_the_two_segments_of_a_pair_differ():
    store = filled_store(episodes=1, steps=LENGTH + 1)  # two spans: half of all draws must be repeated
    first, second = choose_pairs(store, None, 100, np.random.default_rng(0), sampler="uniform")
    assert {(a.start, b.start) for a, b in zip(first.spans, second.spans, strict=True)} == {(0, 1), (1, 0)}
    message = "expected at least two different segments to compare, but the episodes have only one"
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose_pairs(filled_store(1, LENGTH), None, 3, np.random.default_rng(0), sampler="uniform")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "random"}, f"sampler must be one of {get_args(Sampler)}, got 'random'"),
        ({"count": 0}, "count and candidates must be at least 1, got 0 and 10"),
        ({"candidates": 0}, "count and candidates must be at least 1, got 2 and 0"),
        ({"newest": 0}, "newest must be at least 1, or None for all, got 0"),
        *(
            (
                {"sampler": sampler},
                'this sampler needs an ensemble that has been fitted, got None; ask by "uniform" first',
            )
            for sampler in ("disagreement", "entropy", "k-center+disagreement", "k-center+entropy")
        ),
    ],
)
def test_what_cannot_be_chosen(arguments, message):
    settings = {"count": 2, "sampler": "uniform", **arguments}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose_pairs(filled_store(2), None, rng=np.random.default_rng(0), **settings)
