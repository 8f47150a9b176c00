"""A labeler of two: a cheap one labels, and pairs that it is unsure of go to a better one, such as a person."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.models.gate import Gate as Gate
from vlp_gym.models.gate import Gated
from vlp_gym.preferences.correction import Correction
from vlp_gym.preferences.labelers import Floats, Labeler, ModelLabeler, as_labels, check_labeler, decide
from vlp_gym.preferences.segments import Segments

ROUNDS = 16
"""In which the pairs of one call go to the better labeler: each round knows the answers of those before."""


class CascadeLabeler:
    """Labels by `small`, and by `large` for the pairs that the `gate` chooses (ROVED, Ghosh et al., 2026).

    ROVED adapts the small model to the answers of the large one. Here the labels are adapted, see `Correction`: each
    answer also changes the labels of pairs with states and actions like those of the pair that was asked about, and
    which pairs are uncertain. So `large` is called up to 16 times for the pairs of one call.

    Args:
        small: should give soft labels, as ``ModelLabeler(..., soft=True)`` does: how sure it is matters.
        large: a person, a larger model, a scripted teacher.
        gate: how many pairs go to `large`; None takes the defaults.
        soft: keep probabilities as labels, instead of the likelier side.

    Attributes:
        gate: it counts what was asked and what was sent.
        correction: what was learned from the answers of `large`.
    """

    def __init__(self, small: Labeler, large: Labeler, gate: Gate | None = None, *, soft: bool = False) -> None:
        check_labeler(small)
        check_labeler(large)
        self.small, self.large, self.gate, self.soft = small, large, gate or Gate(), soft
        self.correction = Correction()

    def __call__(self, first: Segments, second: Segments) -> Floats:
        """Labels, float64 ``[N]``; `large` is not called without a pair."""
        said = as_labels(self.small(first, second), len(first), self.small)
        answers, asked = np.full(len(first), np.nan), np.zeros(len(first), np.bool_)
        probability = self.correction(first, second, said)
        most = self.gate.room(len(first))
        for place in range(ROUNDS):
            left = np.flatnonzero(~asked)
            rows = left[self.gate.nearest(probability[left], most * (place + 1) // ROUNDS - int(asked.sum()))]
            if not len(rows):
                continue
            asked[rows] = True
            if self.interrupted:  # the person has gone: these have no label
                continue
            answers[rows] = as_labels(self.large(first[rows], second[rows]), len(rows), self.large)
            self.correction.add(first[rows], second[rows], said[rows], answers[rows])
            probability = self.correction(first, second, said)
        return np.where(asked, answers, decide(probability, 0.0, soft=self.soft))

    @property
    def interrupted(self) -> bool:
        """Whether a person ended the labelling."""
        return bool(getattr(self.large, "interrupted", False))

    @property
    def rng(self) -> np.random.Generator | None:
        """The generator of the larger labeler's mistakes."""
        return getattr(self.large, "rng", None)


def gate_of(labeler: Any) -> Gate | None:
    """The gate of a cascade, which may be the model of a `ModelLabeler`; None for anything else."""
    gated = labeler.engine.model.model if isinstance(labeler, ModelLabeler) else labeler
    return gated.gate if isinstance(gated, Gated) else None
