"""A labeler of two: a cheap one labels, and pairs that it is unsure of go to a better one, such as a person."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlp_gym.models.gate import Gate as Gate
from vlp_gym.models.gate import Gated
from vlp_gym.preferences.labelers import Floats, Labeler, ModelLabeler, as_labels, check_labeler, decide
from vlp_gym.preferences.segments import Segments


class CascadeLabeler:
    """Labels by `small`, and by `large` for the pairs that the `gate` chooses (ROVED, Ghosh et al., 2026).

    Args:
        small: should give soft labels, as ``ModelLabeler(..., soft=True)`` does: of hard ones only those of 0.5 and NaN
            are uncertain.
        large: a person, a larger model, a scripted teacher.
        gate: how many pairs go to `large`; None takes the defaults.
        soft: keep the probabilities of `small` as labels, instead of its likelier side.

    Attributes:
        gate: it counts what was asked and what was sent.
    """

    def __init__(self, small: Labeler, large: Labeler, gate: Gate | None = None, *, soft: bool = False) -> None:
        check_labeler(small)
        check_labeler(large)
        self.small, self.large, self.gate, self.soft = small, large, gate or Gate(), soft

    def __call__(self, first: Segments, second: Segments) -> Floats:
        """Labels, float64 ``[N]``; `large` is not called without a pair."""
        probability = as_labels(self.small(first, second), len(first), self.small)
        rows = self.gate.choose(probability)
        labels = decide(probability, 0.0, soft=self.soft)
        if len(rows):
            labels[rows] = as_labels(self.large(first[rows], second[rows]), len(rows), self.large)
        return labels

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
