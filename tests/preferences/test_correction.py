"""What answers say about other pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlp_gym.preferences import CascadeLabeler, Gate, ScriptedLabeler, Segments, Span, agreement
from vlp_gym.preferences.correction import TRUST, VARIANCE, Correction

SIZES = 5, 4, 2
"""Steps, numbers in a state and in an action."""


def segments(count: int, seed: int, *, alike: bool = False) -> Segments:
    """Random ones, whose reward is the first number of the state less the second; the last step is padding."""
    steps, states, actions = SIZES
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(count, steps, states)).astype(np.float32)
    action = rng.normal(size=(count, steps, actions)).astype(np.float32)
    mask = np.broadcast_to(np.arange(steps) < steps - 1, (count, steps))
    if alike:
        state[:], action[:] = 1.0, -1.0
    reward = state[..., 0] - state[..., 1]
    state[:, -1], action[:, -1] = 0.0, 0.0
    return Segments(state, action, mask, reward, (Span(0, 0, steps - 1),) * count, (None,) * count)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_nothing_is_changed_before_the_first_answer() -> None:
    first, second, said = segments(3, 0), segments(3, 1), np.array([0.9, np.nan, 0.2])
    correction = Correction()
    np.testing.assert_equal(correction(first, second, said), said)
    correction.add(first, second, said, np.full(3, np.nan))  # skipped
    assert not len(correction)
    np.testing.assert_equal(correction(first, second, said), said)


def test_where_all_segments_are_alike_the_trust_in_the_cheap_labeler_is_learned() -> None:
    """Then logit = w s with s = TRUST (p - 0.5) and w ~ N(1, 1): by hand, one number to be found."""
    first, second = segments(4, 0, alike=True), segments(4, 1, alike=True)
    said, answers = np.array([0.9, 0.8, 0.3]), np.array([0.0, 0.0, 1.0])  # always wrong
    correction = Correction()
    correction.add(first[:3], second[:3], said, answers)
    s = TRUST * (said - 0.5)
    low, high = -10.0, 10.0
    for _ in range(60):  # the maximum of the log posterior: its slope falls
        w = (low + high) / 2
        slope = sum(x * (y - sigmoid(w * x)) for x, y in zip(s, answers, strict=True)) - (w - 1)
        low, high = (w, high) if slope > 0 else (low, w)
    curvature = 1 + sum(x * x * sigmoid(w * x) * (1 - sigmoid(w * x)) for x in s)
    new = TRUST * (np.array([0.9, 0.5, np.nan, 0.1]) - 0.5)
    expected = [0.5 if math.isnan(x) else sigmoid(w * x / math.sqrt(1 + math.pi / 8 * x * x / curvature)) for x in new]
    assert w < 0  # it is not trusted at all
    found = correction(first, second, np.array([0.9, 0.5, np.nan, 0.1]))
    assert found == pytest.approx(expected, abs=1e-6)


def test_one_answer_about_one_number() -> None:
    """Two pairs whose states differ in one number only, and nothing said: by hand as well."""
    steps, _, actions = SIZES
    place = np.array([0.0, 1.0, 3.0, 0.0])  # of the first and the second segment of pairs 0 and 1

    def at(values) -> Segments:
        state = np.zeros((len(values), steps, 1), np.float32) + np.asarray(values, np.float32)[:, None, None]
        numbers = np.ones((len(values), steps), np.bool_)
        plain = np.zeros((len(values), steps), np.float32)
        action = np.zeros((len(values), steps, actions), np.float32)
        return Segments(state, action, numbers, plain, (Span(0, 0, steps),) * len(values), (None,) * len(values))

    correction = Correction()
    correction.add(at(place[:1]), at(place[1:2]), np.array([0.5]), np.array([1.0]))
    a, b, c, d = place / place.std()

    def kernel(x: float, y: float) -> float:
        return VARIANCE * (x * y + math.exp(-((x - y) ** 2) / 2))

    def between(one, other) -> float:
        (p, q), (r, s) = one, other
        return kernel(p, r) - kernel(p, s) - kernel(q, r) + kernel(q, s)

    own, across, new = between((a, b), (a, b)), between((c, d), (a, b)), between((c, d), (c, d))
    low, high = 0.0, 50.0
    for _ in range(60):
        f = (low + high) / 2  # f = own (1 - sigmoid(f)), as the slope of the log posterior is 0
        low, high = (f, high) if own * (1 - sigmoid(f)) > f else (low, f)
    weight = sigmoid(f) * (1 - sigmoid(f))
    mean, variance = across * (1 - sigmoid(f)), new - across**2 / (own + 1 / weight)
    found = correction(at(place[2:3]), at(place[3:]), np.array([0.5]))
    assert across < 0  # the first was better where it was lower; here it is higher
    assert found == pytest.approx([sigmoid(mean / math.sqrt(1 + math.pi * variance / 8))], abs=1e-5)


@pytest.mark.parametrize("calls", [1, 5])
def test_a_fifth_of_the_labels_is_enough(calls: int) -> None:
    """The model is wrong where the third number of the first segment's states is high, and as sure as elsewhere."""
    count = 200
    first, second = segments(count, 0), segments(count, 1)
    truth = first.returns - second.returns
    right = first.states[:, :-1, 2].mean(1) < 0.2
    said = np.where((truth > 0) == right, 0.9, 0.1)
    parts = np.split(np.arange(count), calls)
    place = iter(parts)
    labeler = CascadeLabeler(lambda a, b: said[next(place)], ScriptedLabeler(), Gate(0.5, share=0.2))
    labels = np.concatenate([labeler(first[rows], second[rows]) for rows in parts])
    assert labeler.gate.sent == count / 5
    assert right.mean() < 0.75
    # If those were asked about that are wrong, and no others, and nothing was learned, right + 0.2 would be right.
    assert agreement(labels, truth)[0] > max(0.95, right.mean() + 0.2)
