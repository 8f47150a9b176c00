"""Calibration of an ensemble: its members' scores of many videos, to rank new scores among them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.video import ENCODE_BATCH
from vlp_gym.engine.windows import window_indices
from vlp_gym.models.ensemble import EnsembleModel

MOMENTS = 8  # frames per video at which values are taken


def calibrate(model: EnsembleModel, trajectories: Sequence[Trajectory], *, progress_bar: bool = True) -> None:
    """Set the ranks of an ensemble's members from their scores of rollouts under the rollouts' own sentences.

    Args:
        model: the ensemble, calibrated in place.
        trajectories: good and bad rollouts of training tasks, like the agent's.
        progress_bar: show a progress bar.

    Raises:
        ValueError: if there are no rollouts, or a member gives all of them the same score.
        QueryError: if a member raises, or answers NaN or inf.
        DatasetError: if a rollout carries no sentences.
    """
    if not trajectories:
        raise ValueError("trajectories: expected at least one, got none")
    whole, device = GuardedModel(model), model.progress_ranks.device
    members = [GuardedModel(member) for member in model.members]
    values: list[np.ndarray] = []
    liking: list[np.ndarray] = []
    for trajectory in tqdm(trajectories, desc="calibrating", unit="video", disable=not progress_bar):
        where = trajectory.name
        chunks = torch.from_numpy(trajectory.frames).split(ENCODE_BATCH)
        tokens = torch.cat([whole.encode_frames(chunk, where=where) for chunk in chunks])
        moments = np.unique(np.linspace(0, len(tokens) - 1, MOMENTS).round().astype(int))
        windows = [window_indices(moment + 1, model.window, model.history) for moment in moments]
        frames = tokens[torch.from_numpy(np.stack([indices for indices, _ in windows])).to(device)]
        mask = torch.from_numpy(np.stack([mask for _, mask in windows])).to(device)
        text = whole.encode_text([trajectory.canonical], where=where).expand(len(moments), -1, -1)
        with torch.inference_mode():
            answers = model.ask(frames, text, mask, [partial(member.score, where=where) for member in members])
        values.append(np.stack([value[:, -1].double().cpu().numpy() for _, value in answers]))
        liking.append(np.stack([scores.preference.double().cpu().numpy() for scores, _ in answers]))
    model.calibrate(np.concatenate(values, 1), np.concatenate(liking, 1))
