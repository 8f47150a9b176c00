from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stored import check_refused
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.segments import Segments, Span
from vlp_gym.storage import write_pair

LENGTH = 4


def segments(numbers: list[float], *, steps: int = LENGTH, length: int = LENGTH) -> Segments:
    """One segment for each number, which its states hold; the actions hold its negative."""
    count = len(numbers)
    mask = np.tile(np.arange(length) < steps, (count, 1))
    states = np.array(numbers, np.float32)[:, None, None] * mask[:, :, None] * np.ones(3, np.float32)
    rewards = np.zeros((count, length), np.float32)
    return Segments(states, -states[:, :, :2], mask, rewards, (Span(0, 0, steps),) * count, (None,) * count)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, math.nan]), max_size=5), max_size=6), st.integers(1, 8))
def test_the_newest_pairs_are_kept(batches, capacity):  # fault 50
    buffer, expected, number = PreferenceBuffer(capacity), [], 0
    for labels in batches:
        numbers = list(range(number, number + len(labels)))
        number += len(labels)
        kept = [(n, label) for n, label in zip(numbers, labels, strict=True) if not math.isnan(label)]
        assert buffer.add(segments(numbers), segments([-n for n in numbers]), labels) == len(kept)
        expected += kept
    expected = expected[-capacity:]
    assert len(buffer) == len(expected)
    if expected:
        assert buffer.labels.tolist() == [label for _, label in expected]
        assert buffer.inputs[:, 0, 0, 0].tolist() == [n for n, _ in expected]
        assert buffer.inputs[:, 1, 0, 0].tolist() == [-n for n, _ in expected]


def test_states_and_actions_lie_beside_each_other():
    buffer = PreferenceBuffer()
    buffer.add(segments([2.0]), segments([3.0], steps=2), [1])
    assert buffer.inputs.shape == (1, 2, LENGTH, 5)
    assert buffer.inputs[0, :, 0].tolist() == [[2, 2, 2, -2, -2], [3, 3, 3, -3, -3]]
    assert buffer.inputs[0, 1, 2:].any() == np.False_
    assert buffer.mask.tolist() == [[[True] * 4, [True, True, False, False]]]


def test_soft_labels_are_taken_on_request():
    buffer = PreferenceBuffer()
    assert buffer.add(segments([1, 2, 3]), segments([4, 5, 6]), [0.25, math.nan, 1.0], soft=True) == 2
    assert buffer.labels.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("labels", "soft", "message"),
    [
        ([1.0, 0.25], False, "expected each label to be 0, 0.5, 1 or NaN (skip), got 0.25"),
        ([math.nan, -1.0], False, "expected each label to be 0, 0.5, 1 or NaN (skip), got -1"),
        ([math.inf, 1.0], False, "expected each label to be 0, 0.5, 1 or NaN (skip), got inf"),
        ([0.5, 1.5], True, "expected each label to be a probability from 0 to 1, got 1.5"),
        ([1.0], False, "expected one label a pair, got labels (1,) for 2 first and 2 second"),
        ([[1.0, 0.0]], False, "expected one label a pair, got labels (1, 2) for 2 first and 2 second"),
    ],
)
def test_labels_that_are_none(labels, soft, message):  # fault 52
    buffer = PreferenceBuffer()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        buffer.add(segments([1, 2]), segments([3, 4]), labels, soft=soft)
    assert len(buffer) == 0


def test_segments_that_do_not_fit():
    buffer = PreferenceBuffer()
    with pytest.raises(ValueError, match=r"^expected one label a pair, got labels \(2,\) for 2 first and 1 second$"):
        buffer.add(segments([1, 2]), segments([3]), [1, 0])
    with pytest.raises(ValueError, match=r"^expected segments of at least one step$"):
        buffer.add(segments([1]), segments([2], steps=0), [1])
    buffer.add(segments([1]), segments([2]), [1])
    message = "expected segments like those that are kept, (2, 4, 5), got (2, 6, 5)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        buffer.add(segments([1], length=6), segments([2], length=6), [1])
    assert len(buffer) == 1
    with pytest.raises(ValueError, match=r"^capacity must be at least 1, got 0$"):
        PreferenceBuffer(0)


def test_a_saved_buffer_comes_back(tmp_path):
    buffer = PreferenceBuffer(3)
    buffer.add(segments([1, 2, 3]), segments([4, 5, 6], steps=2), [1, 0.5, 0])
    buffer.save(tmp_path)
    back = PreferenceBuffer.load(tmp_path)
    assert back.capacity == 3
    for name in ("inputs", "mask", "labels"):
        ours, theirs = getattr(buffer, name), getattr(back, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    for copy in (buffer, back):
        copy.add(segments([7]), segments([8]), [1])
    np.testing.assert_array_equal(back.inputs, buffer.inputs)


@pytest.mark.parametrize("skipped", [False, True])
def test_an_empty_buffer_comes_back_empty(tmp_path, skipped):
    buffer = PreferenceBuffer()
    if skipped:
        buffer.add(segments([1]), segments([2]), [math.nan])
    buffer.save(tmp_path)
    back = PreferenceBuffer.load(tmp_path)
    assert len(back) == 0
    back.add(segments([1]), segments([2]), [0])
    assert back.labels.tolist() == [0.0]


def test_another_format_is_refused(tmp_path):
    write_pair(tmp_path, {"format": 2, "capacity": 5}, {}, stem="preferences")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/preferences.json: format: expected 1, got 2$"):
        PreferenceBuffer.load(tmp_path)


def test_states_that_are_no_numbers_are_refused():
    buffer = PreferenceBuffer()
    first, second = segments([1.0, 2.0]), segments([3.0, 4.0])
    second.states[1, 0, 0] = np.nan
    message = f"expected finite states and actions, got NaN or inf in {second.spans[1]}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        buffer.add(first, second, [1, 0])
    assert len(buffer) == 0
    assert buffer.labels.shape == (0,)
    assert buffer.inputs.shape[:2] == buffer.mask.shape[:2] == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(capacity=0), "capacity: expected greater than or equal to 1, got 0"),
        (lambda d, t: d.update(capacity=1), "expected at most 1 pairs, got 2"),
        (lambda d, t: d.update(more=1), "more: an unknown entry"),
        (lambda d, t: t["labels"].fill_(1.5), "labels: expected numbers from 0 to 1, got 1.5"),
        (lambda d, t: t["labels"].fill_(math.nan), "labels: expected finite numbers, got NaN or inf"),
        (lambda d, t: t["inputs"].fill_(math.inf), "inputs: expected finite numbers, got NaN or inf"),
        (lambda d, t: t["mask"].fill_(False), "mask: expected segments of at least one step"),
        (lambda d, t: t.update(labels=t["labels"][:1]), "labels: expected the shape [2], got [1]"),
        (lambda d, t: t.pop("mask"), "missing tensors: mask"),
    ],
)
def test_content_that_is_refused(tmp_path, change, message):
    buffer = PreferenceBuffer(5)
    buffer.add(segments([1, 2]), segments([3, 4]), [1, 0])
    check_refused(buffer, tmp_path, change, message)
