"""Tunes the constants of `StagedRewardModel` that are not trained, on validation tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.windows import window_indices
from vlp_gym.evaluation.metrics import preference_accuracy
from vlp_gym.models.staged import StagedRewardModel

BASES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
SHARPNESSES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
SHIFTS = np.linspace(-6, 6, 121)
Scores = NDArray[np.floating[Any]]
"""Of V videos under M sentences, ``[V, M]``."""


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
    shown = _validation(model, trajectories, tasks)
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


@dataclass(frozen=True)
class _Validation:
    """V unvaried videos of the three tiers, and M sentences: the canonical and the held-out ones of each task.

    Attributes:
        guard: the model.
        videos: V rollouts.
        text: tokens of the sentences, ``[M, L, D]``.
        owner: the task of each sentence, int64 ``[M]``.
        task_of: the task of each video, int64 ``[V]``.
        tier_of: its place in `TIERS`, int64 ``[V]``.
    """

    guard: GuardedModel
    videos: Sequence[Trajectory]
    text: Tensor
    owner: NDArray[np.int64]
    task_of: NDArray[np.int64]
    tier_of: NDArray[np.int64]

    def windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Frame tokens ``[1, T, K, D]`` and mask ``[1, T]`` of each video, frames spread over all of it."""
        for video in self.videos:
            index, mask = window_indices(len(video.frames), self.guard.model.window, "prefix")
            tokens = self.guard.encode_frames(torch.from_numpy(video.frames[index]), where=video.name)
            yield tokens[None], torch.from_numpy(mask)[None]

    def shift(self, relevance: Scores) -> float:
        """What makes sigmoid(relevance + shift) the probability that a sentence is right, when half of them are."""
        right = self.owner[None, :] == self.task_of[:, None]
        logits = torch.from_numpy(relevance)
        losses = [
            float(F.softplus(-(logits[right] + shift)).mean() + F.softplus(logits[~right] + shift).mean())
            for shift in SHIFTS
        ]
        return round(float(SHIFTS[int(np.argmin(losses))]), 2)

    def differences(self, score: Scores) -> tuple[list[Scores], list[Scores], list[Scores]]:
        """Differences of scores, better minus worse: of ITP by tier, of IVP, and of ILP, where none is better."""
        itp, ivp, ilp = [], [], []
        for column, task in enumerate(self.owner):
            own, other = score[self.task_of == task, column], score[self.task_of != task, column]
            tiers = [score[(self.task_of == task) & (self.tier_of == tier), column] for tier in range(len(TIERS))]
            itp += [np.subtract.outer(better, worse).ravel() for better, worse in combinations(tiers, 2)]
            ivp.append(np.subtract.outer(own, other).ravel())
            groups = [score[self.task_of == foreign, column] for foreign in set(self.task_of.tolist()) - {task}]
            ilp += [np.subtract.outer(group, group).ravel() for group in groups]
        return itp, ivp, ilp

    def accuracies(self, score: Scores) -> tuple[float, float]:
        """Tier ITP and IVP."""
        itp, ivp, _ = self.differences(score)
        a, b = (np.mean([preference_accuracy(each, np.zeros(len(each))) for each in part]) for part in (itp, ivp))
        return float(a), float(b)


def _validation(model: StagedRewardModel, trajectories: Sequence[Trajectory], tasks: Sequence[str]) -> _Validation:
    """The videos and sentences of at least two validation tasks.

    Raises:
        ValueError: if there are fewer than two tasks, or a task lacks trajectories of a tier.
        DatasetError: if a task's first trajectory carries no sentences.
    """
    if len(tasks) < 2:
        raise ValueError(f"tasks: expected at least two validation tasks, got {list(tasks)}")
    videos = [t for t in trajectories if t.task in tasks and t.tier in TIERS and not t.varied]
    found = {(t.task, t.tier) for t in videos}
    if missing := [f"{task} {tier}" for task in tasks for tier in TIERS if (task, tier) not in found]:
        raise ValueError(f"expected trajectories of every tier of every validation task, found none of {missing}")
    first = [next(t for t in videos if t.task == task) for task in tasks]  # carries the task's sentences
    sentences = [[trajectory.canonical, *trajectory.held_out] for trajectory in first]
    guard = GuardedModel(model)
    return _Validation(
        guard,
        videos,
        guard.encode_text([sentence for group in sentences for sentence in group], where="validation sentences"),
        np.repeat(np.arange(len(tasks)), [len(group) for group in sentences]),
        np.array([tasks.index(t.task) for t in videos]),
        np.array([TIERS.index(t.tier) for t in videos]),
    )


def _cross_entropy(itp: list[Scores], ivp: list[Scores], ilp: list[Scores], sharpness: float) -> float:
    """Of Bradley-Terry's P(a > b) against the labels 1, 1 and 0.5; the three kinds count alike."""
    better = [np.mean([np.logaddexp(0, -sharpness * each).mean() for each in part]) for part in (itp, ivp)]
    equal = np.mean([np.logaddexp(0, sharpness * each).mean() for each in ilp])  # every pair is there in both orders
    return float(sum(better) + equal)
