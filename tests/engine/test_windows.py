from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.engine.windows import window_indices


@given(st.integers(1, 2000), st.integers(1, 64), st.sampled_from(["sliding", "prefix"]))
def test_every_window_keeps_its_promises(num_frames, window, history):
    indices, mask = window_indices(num_frames, window, history)

    assert indices.shape == mask.shape == (window,)
    assert indices.dtype == np.int64
    assert mask.dtype == np.bool_
    assert indices[-1] == num_frames - 1
    assert mask.sum() == min(num_frames, window)
    assert mask[-mask.sum() :].all(), "the real frames come last"
    assert (indices[~mask] == 0).all(), "padding repeats the first frame"
    assert (np.diff(indices[mask]) >= 1).all(), "sorted, and no frame twice"
    if history == "prefix" and window > 1:
        assert indices[0] == 0
    if history == "sliding":
        assert (np.diff(indices[mask]) == 1).all()


@given(st.integers(2, 2000), st.integers(2, 64))
def test_prefix_is_spread_evenly(num_frames, window):
    indices, mask = window_indices(num_frames, window, "prefix")
    gaps = np.diff(indices[mask])
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("num_frames", "window", "history", "expected"),
    [
        (1, 3, "prefix", [0, 0, 0]),  # the one-frame episode: padded and masked
        (9, 3, "prefix", [0, 4, 8]),
        (9, 3, "sliding", [6, 7, 8]),
        (9, 1, "prefix", [8]),
    ],
)
def test_examples(num_frames, window, history, expected):
    assert window_indices(num_frames, window, history)[0].tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, "prefix"), "num_frames and window must be at least 1, got 0 and 4"),
        ((4, 0, "prefix"), "num_frames and window must be at least 1, got 4 and 0"),
        ((4, 4, "suffix"), "history must be 'sliding', 'prefix' or 'prefix-floor', got 'suffix'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        window_indices(*arguments)
