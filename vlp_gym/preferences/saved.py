"""A `PreferenceLearner` on disk: its document, its parts, and whether they fit together."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.correction import Correction
from vlp_gym.preferences.reward import RewardEnsemble
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.schema import Count, Document, Share, below, listed

PARTS = ("segments", "preferences", "ensemble", "correction")
Parts = tuple[SegmentStore, PreferenceBuffer, RewardEnsemble | None, Correction | None]
Loss = Annotated[float, Field(ge=0)]


class Row(Document):
    """What a session returned; None stands for NaN."""

    step: Count
    labels: Count
    skipped: Count
    label_accuracy: Share | None
    ensemble_agreement: Share | None
    judged_accuracy: Share | None = None
    sent_up: Count | None = None
    fit_accuracy: Share | None = None
    fit_loss: Loss | None = None


class SavedLearner(Document):
    """What `PreferenceLearner.pack` gives beside the tensors of its parts."""

    settings: dict[str, Any]
    history: list[Row]
    asked: Count
    reward: list[float] = Field(min_length=2, max_length=2)
    unfitted: bool
    next: Count | None
    rng: dict[str, Any]
    labeler_rng: dict[str, Any]
    gate: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    segments: dict[str, Any]
    preferences: dict[str, Any]
    ensemble: dict[str, Any] | None = None
    correction: dict[str, Any] | None = None


def unpack_parts(
    saved: SavedLearner, tensors: Mapping[str, Tensor], where: str | Path, sizes: tuple[int, int] | None
) -> Parts:
    """The parts of a learner.

    Args:
        saved: their documents.
        tensors: their tensors, as ``<part>/<name>``.
        where: named in errors.
        sizes: numbers in a state and in an action; None takes what the ensemble has.

    Raises:
        CheckpointError: a part is wrong, or does not fit the others or the sizes.
    """
    known = [name for name in PARTS if getattr(saved, name) is not None]
    if unknown := sorted(name for name in tensors if name.partition("/")[0] not in known):
        raise CheckpointError(f"{where}: unknown tensors: {listed(unknown)}")
    segments = SegmentStore.unpack(saved.segments, below(tensors, "segments/"), where)
    preferences = PreferenceBuffer.unpack(saved.preferences, below(tensors, "preferences/"), where)
    ensemble = correction = None
    if saved.correction is not None:
        correction = Correction.unpack(saved.correction, below(tensors, "correction/"), where)
    if saved.ensemble is not None:
        ensemble = RewardEnsemble.unpack(saved.ensemble, below(tensors, "ensemble/"), where)
        made = ensemble.settings["state_dim"], ensemble.settings["action_dim"]
        rows = {"preferences/inputs": [2, segments.length, sum(made)]}
        if correction:
            rows["correction/first"] = [sum(made)]
        for number in segments.numbers[:1]:  # the same in all episodes
            rows |= {f"segments/{number}.states": [made[0]], f"segments/{number}.actions": [made[1]]}
        for name, row in rows.items():
            if name in tensors and (found := list(tensors[name].shape[1:])) != row:
                raise CheckpointError(f"{where}: {name}: expected rows of the shape {row}, got {found}")
        if made != (sizes or made):
            raise CheckpointError(f"{where}: made for states and actions of the sizes {made}, got {sizes}")
    return segments, preferences, ensemble, correction


def check_settings(expected: Mapping[str, Any], saved: Mapping[str, Any], where: str | Path) -> None:
    """Raise CheckpointError unless the expected settings were saved, and no others."""
    for name, ours in expected.items():
        if (found := saved.get(name)) != ours:
            raise CheckpointError(f"{where}: expected {name}={ours}, but it was saved with {reprlib.repr(found)}")
    if unknown := saved.keys() - expected.keys():
        raise CheckpointError(f"{where}: unknown settings: {listed(sorted(unknown))}")
