"""Tunes the constants of `CompactRewardModel` that are not trained, on validation tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.windows import window_indices
from vlp_gym.evaluation.metrics import preference_accuracy
from vlp_gym.models.compact import CompactRewardModel

QUALITY_WEIGHTS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
MOTION_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
SHIFTS = np.linspace(-6, 6, 121)


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
    if len(tasks) < 2:
        raise ValueError(f"tasks: expected at least two validation tasks, got {list(tasks)}")
    chosen = [t for t in trajectories if t.task in tasks and t.tier in TIERS and not t.varied]
    found = {(t.task, t.tier) for t in chosen}
    if missing := [f"{task} {tier}" for task in tasks for tier in TIERS if (task, tier) not in found]:
        raise ValueError(f"expected trajectories of every tier of every validation task, found none of {missing}")
    first = [next(t for t in chosen if t.task == task) for task in tasks]  # carries the task's sentences
    sentences = [[trajectory.canonical, *trajectory.held_out] for trajectory in first]
    guard = GuardedModel(model)
    text = guard.encode_text([sentence for group in sentences for sentence in group], where="validation sentences")
    owner = np.repeat(np.arange(len(tasks)), [len(group) for group in sentences])
    scores = []  # scene, motion and quality [sentences] of each video
    for trajectory in chosen:
        index, mask = window_indices(len(trajectory.frames), model.window, "prefix")
        tokens = guard.encode_frames(torch.from_numpy(trajectory.frames[index]), where=trajectory.name)[None]
        clip = model.features(tokens, torch.from_numpy(mask)[None])
        scene, motion = model.scene_relevance(clip, text)[0], model.motion_relevance(clip, text)[0]
        under_each = clip.rows(torch.zeros(len(text), dtype=torch.int64))
        progress = model.progress_logits(under_each, text)
        quality = model.quality(under_each, progress, torch.from_numpy(mask).expand_as(progress)).sigmoid()
        scores.append(torch.stack([scene, motion, quality]).numpy())
    task_of = np.array([tasks.index(t.task) for t in chosen])
    tier_of = np.array([TIERS.index(t.tier) for t in chosen])
    scenes, motions, qualities = np.stack(scores, 1)  # [videos, sentences] each
    table = [
        (a, b, *_accuracies(scenes + b * motions + a * qualities, owner, task_of, tier_of))
        for a, b in itertools.product(QUALITY_WEIGHTS, MOTION_WEIGHTS)
    ]
    best = max(table, key=lambda row: row[2] + row[3])
    right = owner[None, :] == task_of[:, None]
    logits = torch.from_numpy(scenes)
    losses = [
        float(F.softplus(-(logits[right] + shift)).mean() + F.softplus(logits[~right] + shift).mean())
        for shift in SHIFTS
    ]
    return Tuned(best[0], best[1], round(float(SHIFTS[int(np.argmin(losses))]), 2), table)


def _accuracies(
    score: NDArray[np.floating[Any]], owner: NDArray[np.int64], task_of: NDArray[np.int64], tier_of: NDArray[np.int64]
) -> tuple[float, float]:
    """Tier ITP and IVP of scores ``[videos, sentences]``."""
    itp, ivp = [], []
    for column, task in enumerate(owner):
        own, other = task_of == task, task_of != task
        for better in range(len(TIERS)):
            for worse in range(better + 1, len(TIERS)):
                a, b = score[own & (tier_of == better), column], score[own & (tier_of == worse), column]
                itp.append(preference_accuracy(np.repeat(a, len(b)), np.tile(b, len(a))))
        a, b = score[own, column], score[other, column]
        ivp.append(preference_accuracy(np.repeat(a, len(b)), np.tile(b, len(a))))
    return float(np.mean(itp)), float(np.mean(ivp))
