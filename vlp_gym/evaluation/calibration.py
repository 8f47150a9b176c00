"""The scale of an ensemble: what its members say of many videos, so that each can be ranked among its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import ENCODE_BATCH
from vlp_gym.engine.windows import window_indices
from vlp_gym.models.ensemble import EnsembleModel

MOMENTS = 8  # of each video


@torch.inference_mode()
def calibrate(model: EnsembleModel, trajectories: Sequence[Trajectory], *, progress_bar: bool = True) -> None:
    """Rank an ensemble's members by what they say of these rollouts under their own sentences.

    Args:
        model: its ranks are set.
        trajectories: of training tasks: good and bad ones, as the agent's will be.
        progress_bar: show one.

    Raises:
        ValueError: if there are no rollouts, or a member says the same of all.
        DatasetError: if a rollout carries no sentences.
    """
    if not trajectories:
        raise ValueError("trajectories: expected at least one, got none")
    device = model.progress_ranks.device
    values: list[np.ndarray] = []
    liking: list[np.ndarray] = []
    for trajectory in tqdm(trajectories, desc="calibrating", unit="video", disable=not progress_bar):
        chunks = torch.from_numpy(trajectory.frames).split(ENCODE_BATCH)
        tokens = torch.cat([model.encode_frames(chunk.to(device)) for chunk in chunks])
        moments = np.unique(np.linspace(0, len(tokens) - 1, MOMENTS).round().astype(int))
        windows = [window_indices(moment + 1, model.window, model.history) for moment in moments]
        frames = tokens[torch.from_numpy(np.stack([indices for indices, _ in windows])).to(device)]
        mask = torch.from_numpy(np.stack([mask for _, mask in windows])).to(device)
        text = model.encode_text([trajectory.canonical]).expand(len(moments), -1, -1)
        answers = model.ask(frames, text, mask)
        values.append(np.stack([value[:, -1].double().cpu().numpy() for _, value in answers]))
        liking.append(np.stack([scores.preference.double().cpu().numpy() for scores, _ in answers]))
    model.calibrate(np.concatenate(values, 1), np.concatenate(liking, 1))
