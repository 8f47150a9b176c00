from __future__ import annotations

import itertools
import math
import re

import pytest

from vlp_gym.policies.awr import AWROptions, step_weights


def test_weights_of_steps_between_frames():
    values, frames = [0.1, 0.4, 0.2], [1, 4, 6]
    every = [0.1, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.2]  # of the states 0 to 7
    expected = [math.exp(3 * (after - before)) for before, after in itertools.pairwise(every)]
    assert step_weights(values, frames, 7, temperature=3.0).tolist() == pytest.approx(expected, abs=1e-12)
    assert step_weights(values, frames, 7, temperature=0.0).tolist() == [1.0] * 7
    assert max(step_weights(values, frames, 7, temperature=30.0, most_weight=5.0)) == pytest.approx(5.0)


@pytest.mark.parametrize(("values", "frames"), [([0.1], [0, 1]), ([], []), ([[0.1]], [[0]])])
def test_values_that_are_not_those_of_the_frames(values, frames):
    with pytest.raises(ValueError, match=r"^expected one value a frame, got the shapes \(.*\) and \(.*\)$"):
        step_weights(values, frames, 3, temperature=1.0)


def test_options():
    with pytest.raises(ValueError, match="^" + re.escape("--temperature: expected at least 0, got -1") + "$"):
        AWROptions(temperature=-1)
    with pytest.raises(ValueError, match="^" + re.escape("--most-weight: expected more than 0, got 0") + "$"):
        AWROptions(most_weight=0)
