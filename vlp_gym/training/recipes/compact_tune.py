"""Tunes the constants of `CompactRewardModel` that are not trained, on validation tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.compact import CompactRewardModel
from vlp_gym.training.recipes.tuning import validation

QUALITY_WEIGHTS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
MOTION_WEIGHTS = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Tuned:
    """The chosen constants and the accuracies of each pair of weights.

    Attributes:
        quality_weight: lambda with the best mean of tier ITP and IVP.
        motion_weight: motion weight with the best mean of tier ITP and IVP.
        relevance_shift: calibrates sigmoid(scene relevance + shift) as the probability that a sentence is right, when
            half of them are.
        table: rows (lambda, motion weight, tier ITP accuracy, IVP accuracy).
    """

    quality_weight: float
    motion_weight: float
    relevance_shift: float
    table: list[tuple[float, float, float, float]]
    columns: ClassVar = ("quality weight", "motion weight", "tier ITP", "IVP")


@torch.inference_mode()
def tune(model: CompactRewardModel, trajectories: Sequence[Trajectory], tasks: Sequence[str]) -> Tuned:
    """Choose both weights and the relevance shift on validation tasks that the model was not trained on.

    Args:
        model: trained model; its current constants are ignored.
        trajectories: rollouts of the validation tasks; only unvaried ones of the three tiers are used.
        tasks: at least two validation tasks.

    Raises:
        ValueError: if there are fewer than two tasks, or a task lacks trajectories of a tier.
        DatasetError: if a task's first trajectory carries no sentences.
    """
    shown = validation(model, trajectories, tasks)
    scores = []  # scene, motion and quality [sentences] of each video
    for tokens, mask in shown.windows():
        clip = model.features(tokens, mask)
        scene, motion = model.scene_relevance(clip, shown.text)[0], model.motion_relevance(clip, shown.text)[0]
        under_each = clip.rows(torch.zeros(len(shown.text), dtype=torch.int64))
        progress = model.progress_logits(under_each, shown.text)
        quality = model.quality(under_each, progress, mask.expand_as(progress)).sigmoid()
        scores.append(torch.stack([scene, motion, quality]).numpy())
    scenes, motions, qualities = np.stack(scores, 1)  # [videos, sentences] each
    table = [
        (a, b, *shown.accuracies(scenes + b * motions + a * qualities))
        for a, b in itertools.product(QUALITY_WEIGHTS, MOTION_WEIGHTS)
    ]
    best = max(table, key=lambda row: row[2] + row[3])
    return Tuned(best[0], best[1], shown.shift(scenes), table)
