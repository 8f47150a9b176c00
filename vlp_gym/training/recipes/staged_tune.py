"""Tunes the constants of `StagedRewardModel` that are not trained, on validation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.training.recipes.tuning import Scores, validation

BASES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
SHARPNESSES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)


@dataclass(frozen=True)
class Tuned:
    """The chosen constants and the accuracies of each base.

    Attributes:
        base: the one with the best mean of tier ITP and IVP.
        sharpness: calibrates P(a > b): the least mean cross-entropy of ITP, IVP and ILP (VLP, eq. 4).
        relevance_shift: calibrates sigmoid(relevance + shift) as the probability that a sentence is right, when half of
            them are.
        table: rows (base, tier ITP accuracy, IVP accuracy).
    """

    base: float
    sharpness: float
    relevance_shift: float
    table: list[tuple[float, float, float]]
    columns: ClassVar = ("base", "tier ITP", "IVP")


@torch.inference_mode()
def tune(model: StagedRewardModel, trajectories: Sequence[Trajectory], tasks: Sequence[str]) -> Tuned:
    """Choose the constants on validation tasks that the model was not trained on.

    Args:
        model: trained model; its current constants are ignored.
        trajectories: rollouts of the validation tasks; only unvaried ones of the three tiers are used.
        tasks: at least two validation tasks.

    Raises:
        ValueError: if there are fewer than two tasks, or a task lacks trajectories of a tier.
        DatasetError: if a task's first trajectory carries no sentences.
    """
    shown = validation(model, trajectories, tasks)
    relevances, progresses = [], []  # [sentences] of each video
    for tokens, mask in shown.windows():
        relevances.append(model.relevance(tokens[:, 0], shown.text)[0].double().numpy())
        state = model.state(tokens).expand(len(shown.text), -1, -1)
        progresses.append(model.progress(model.stages(state, shown.text))[:, mask[0]].mean(1).double().numpy())
    relevance, progress = np.stack(relevances), np.stack(progresses)  # [videos, sentences] each
    shift = shown.shift(relevance)
    gate = 1 / (1 + np.exp(-(relevance + shift)))
    table = [(base, *shown.accuracies(gate * (base + progress))) for base in BASES]
    base = max(table, key=lambda row: row[1] + row[2])[0]
    parts = shown.differences(gate * (base + progress))
    losses = [_cross_entropy(*parts, sharpness) for sharpness in SHARPNESSES]
    return Tuned(base, SHARPNESSES[int(np.argmin(losses))], shift, table)


def _cross_entropy(itp: list[Scores], ivp: list[Scores], ilp: list[Scores], sharpness: float) -> float:
    """Of Bradley-Terry's P(a > b) against the labels 1, 1 and 0.5; the three kinds count alike."""
    better = [np.mean([np.logaddexp(0, -sharpness * each).mean() for each in part]) for part in (itp, ivp)]
    equal = np.mean([np.logaddexp(0, sharpness * each).mean() for each in ilp])  # every pair is there in both orders
    return float(sum(better) + equal)
