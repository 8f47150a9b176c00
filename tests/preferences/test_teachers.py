from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.preferences.segments import Segments, Span
from vlp_gym.preferences.teachers import TEACHERS, ScriptedTeacher, discounted_returns, scripted_teacher

LENGTH = 4
REWARDS = st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=LENGTH), min_size=1, max_size=8)


def segments(rewards: list[list[float]]) -> Segments:
    """Segments of these rewards; the padding holds a number that must not count."""
    block = np.array([[*row, *[777.0] * (LENGTH - len(row))] for row in rewards], np.float32)
    mask = np.array([[t < len(row) for t in range(LENGTH)] for row in rewards])
    spans = tuple(Span(0, 0, len(row)) for row in rewards)
    empty = np.zeros((*block.shape, 1), np.float32)
    return Segments(empty, empty, mask, block, spans, (None,) * len(rewards))


def answers(teacher: ScriptedTeacher, first: list[list[float]], second: list[list[float]], mean: float = 10.0) -> list:
    return teacher(segments(first), segments(second), np.random.default_rng(0), mean_return=mean).tolist()


@given(REWARDS, st.sampled_from([0.5, 0.9, 1.0]))
def test_earlier_rewards_are_discounted_as_in_bpref(rewards, gamma):
    expected = []
    for row in rewards:  # B-Pref's loop, on the real steps alone
        row = [float(reward) for reward in row]
        for index in range(len(row) - 1):
            row[: index + 1] = [gamma * reward for reward in row[: index + 1]]
        expected.append(sum(row))
    block = segments(rewards)
    np.testing.assert_allclose(discounted_returns(block.rewards, block.mask, gamma), expected, atol=1e-9)


def test_the_oracle_compares_sums_of_real_steps():
    assert answers(ScriptedTeacher(), [[1, 2], [5], [3]], [[2.5], [1, 2, 3], [1, 1, 1]]) == [1.0, 0.0, 0.5]


def test_a_myopic_teacher_looks_at_the_end():
    first, second = [[10, 0, 0], [10, 0]], [[0, 0, 8.5], [0, 0, 8.5]]
    assert answers(ScriptedTeacher(), first, second) == [1.0, 1.0]
    # 10 * 0.9 ** 2 = 8.1 < 8.5, but of two steps the first is followed by one only: 9.0 > 8.5.
    assert answers(scripted_teacher("myopic"), first, second) == [0.0, 1.0]


def test_pairs_of_two_bad_segments_are_skipped():
    labels = answers(scripted_teacher("skip"), [[1.0], [0.2], [1.5], [-9]], [[0.5], [1.0], [1.0], [1.25]])
    np.testing.assert_equal(labels, [math.nan, math.nan, 1.0, 0.0])  # 0.1 * 10 = 1 must be exceeded


def test_close_returns_are_equal():
    # 0.5 is under 0.1 * 10 but over 0.1 * 0.1 * 10, the threshold of B-Pref's code from the second session on.
    labels = answers(scripted_teacher("equal"), [[5.5], [5.0], [6.0], [1, 1]], [[5.0], [5.5], [5.0], [9.0]])
    assert labels == [0.5, 0.5, 1.0, 0.0]


def test_thresholds_look_at_the_returns_without_the_discount():
    teacher = ScriptedTeacher(myopic=0.5, equal_threshold=0.1, skip_threshold=0.1)
    labels = answers(teacher, [[8, 0, 0], [2, 0, 0]], [[0, 0, 8.5], [0, 0, 0]])
    assert labels == [0.5, 1.0]  # discounted, they would be 2 against 8.5, and 0.5 against 0: a pair to skip


@pytest.mark.parametrize("mean", [0.0, -10.0])
def test_without_a_positive_mean_no_threshold_counts(mean):
    teacher = ScriptedTeacher(equal_threshold=0.1, skip_threshold=0.1)
    assert answers(teacher, [[-5.0], [-5.0]], [[-5.25], [-4.0]], mean) == [1.0, 0.0]


def test_a_noisy_teacher_follows_bradley_terry():
    count = 20_000
    for difference in (-2.0, 0.0, 0.5):
        labels = answers(scripted_teacher("noisy"), [[difference, 1.0]] * count, [[1.0]] * count)
        chance = 1 / (1 + math.exp(-difference))
        assert set(labels) == {0.0, 1.0}
        assert np.mean(labels) == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))
    assert answers(scripted_teacher("noisy"), [[1e6], [-1e6]], [[-1e6], [1e6]]) == [1.0, 0.0]


def test_a_mistaken_teacher_flips_one_in_ten():
    count = 20_000
    labels = answers(scripted_teacher("mistake"), [[1.0]] * count, [[0.0]] * count)
    assert np.mean(labels) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / count))
    always = ScriptedTeacher(mistake=1.0, equal_threshold=0.1, skip_threshold=0.1)
    wrong = answers(always, [[5.0], [0.0], [3.0], [0.5]], [[2.0], [4.0], [3.5], [0.0]])
    np.testing.assert_equal(wrong, [0.0, 1.0, 0.5, math.nan])  # equal and skipped stay as they are


@given(REWARDS, st.sampled_from(sorted(TEACHERS)), st.integers(0, 99))
def test_swapped_segments_swap_the_answer(rewards, name, seed):
    if name == "noisy":
        return
    first, second = segments(rewards), segments(rewards[::-1])
    one, other = (
        scripted_teacher(name)(*sides, np.random.default_rng(seed), mean_return=20.0)
        for sides in ((first, second), (second, first))
    )
    np.testing.assert_equal(one, 1 - other)


def test_every_teacher_draws_as_many_numbers():
    states = []
    for teacher in TEACHERS.values():
        rng = np.random.default_rng(5)
        teacher(segments([[1.0], [2.0]]), segments([[2.0], [1.0]]), rng, mean_return=1.0)
        states.append(rng.bit_generator.state)
    assert all(state == states[0] for state in states)


def test_the_constants_of_bpref():
    differing = {
        name: {field: value for field, value in vars(teacher).items() if value != getattr(ScriptedTeacher(), field)}
        for name, teacher in TEACHERS.items()
    }
    assert differing == {
        "oracle": {},
        "mistake": {"mistake": 0.1},
        "noisy": {"beta": 1.0},
        "skip": {"skip_threshold": 0.1},
        "equal": {"equal_threshold": 0.1},
        "myopic": {"myopic": 0.9},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta must be at least 0, got -1.0"),
        ({"beta": math.nan}, "beta must be at least 0, got nan"),
        ({"equal_threshold": -0.1}, "equal_threshold must be at least 0, got -0.1"),
        ({"skip_threshold": -0.1}, "skip_threshold must be at least 0, got -0.1"),
        ({"mistake": 1.5}, "mistake must be in [0, 1], got 1.5"),
        ({"myopic": -0.5}, "myopic must be in [0, 1], got -0.5"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ScriptedTeacher(**settings)


def test_what_a_teacher_cannot_answer():
    message = "teacher must be one of ('oracle', 'mistake', 'noisy', 'skip', 'equal', 'myopic'), got 'human'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scripted_teacher("human")
    with pytest.raises(ValueError, match=r"^expected as many first as second segments, got 1 and 2$"):
        answers(ScriptedTeacher(), [[1.0]], [[1.0], [2.0]])
    message = "a scripted teacher needs the environment's own rewards, but some are NaN or inf"
    with pytest.raises(ValueError, match=f"^{message}$"):
        answers(ScriptedTeacher(), [[1.0, math.nan]], [[1.0]])
    message = "mean_return must be finite for a teacher with a threshold, got nan"
    with pytest.raises(ValueError, match=f"^{message}$"):
        answers(scripted_teacher("equal"), [[1.0]], [[1.0]], math.nan)
    assert answers(scripted_teacher("oracle"), [[1.0]], [[0.0]], math.nan) == [1.0]
