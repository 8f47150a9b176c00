"""Values of a reward model at every step of rollouts: as rewards, or as the weights of imitation."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation.metrics import voc
from vlp_gym.models.protocol import RewardModel

Floats = NDArray[np.float64]


def frame_values(
    trajectories: Sequence[Trajectory],
    model: str | os.PathLike[str] | RewardModel,
    instruction: str,
    *,
    device: str | torch.device = "auto",
    progress_bar: bool = True,
) -> list[Floats]:
    """A model's value of each frame, asked after those before it, as when an agent acts.

    Args:
        trajectories: with frames.
        model: a live model, or its name.
        instruction: the task in one sentence.
        device: where the model runs, see `GuardedModel`.
        progress_bar: show a progress bar.

    Returns:
        For each trajectory of F frames, float64 ``[F]``.

    Raises:
        InstructionError: for an instruction over the model's limit.
        QueryError: the model raises, or answers NaN or inf.
    """
    from tqdm import tqdm

    scorer = VideoScorer(model, [instruction], device)
    found = []
    for trajectory in tqdm(trajectories, desc="scoring", unit=" trajectories", disable=not progress_bar, leave=False):
        scorer.open(trajectory.frames, trajectory.name)
        found.append(scorer.values(instruction))
    return found


def step_values(trajectories: Sequence[Trajectory], values: Sequence[Floats]) -> list[Floats]:
    """The values of all states: those of the frames, interpolated to the steps between frames.

    Args:
        trajectories: of F frames and S steps each.
        values: of their frames, float ``[F]`` each, see `frame_values`.

    Returns:
        For each trajectory, float64 ``[S + 1]``.
    """
    return [
        np.interp(np.arange(len(t.episode_reward) + 1), t.step, each)
        for t, each in zip(trajectories, values, strict=True)
    ]


def order_correlation(values: Floats) -> float:
    """GVL's value-order correlation of a rollout, in [-1, 1]: how well the values of its frames rise (Spearman).

    The first frame is left out: to a model that is told so, its value is 0.

    Args:
        values: of the frames, float ``[F]``; with fewer than three, the correlation is 0.
    """
    return voc(values[1:])["spearman"] if len(values) > 2 else 0.0


def scripted_values(trajectories: Sequence[Trajectory]) -> list[Floats]:
    """The environment's own rewards in the place of a model's values, divided by the largest of all.

    A rollout's first state has no reward and takes that of its first step.

    Args:
        trajectories: with at least one step each.

    Returns:
        For each trajectory of S steps, float64 ``[S + 1]``, at most 1.
    """
    most = max(float(np.abs(trajectory.episode_reward).max()) for trajectory in trajectories) or 1.0
    return [np.concatenate([t.episode_reward[:1], t.episode_reward]).astype(np.float64) / most for t in trajectories]
