"""The ranks of a calibrated ensemble of models, changed with both hashes made right again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.mutations.harness import Target
from tests.mutations.pairs import damage
from tests.tiny import tiny_model
from vlp_gym.errors import CheckpointError
from vlp_gym.models.ensemble import EnsembleModel


def make(folder: Path) -> None:
    members = []
    for number in range(2):
        torch.manual_seed(number)
        members.append(str(folder.parent / f"member-{number}"))
        tiny_model().eval().save_pretrained(members[-1])
    model, rng = EnsembleModel(members), np.random.default_rng(0)
    model.calibrate(rng.random((2, 50)), rng.normal(size=(2, 50)))
    model.eval().save_pretrained(folder)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    return damage(folder, "model", rng)


def read(folder: Path) -> EnsembleModel:
    model: EnsembleModel = EnsembleModel.from_pretrained(folder)
    return model


def wrong(model: EnsembleModel) -> str:
    for name in ("progress_ranks", "preference_ranks"):
        ranks = getattr(model, name)
        if ranks.shape != (len(model.members), 101) or ranks.dtype != torch.float64:
            return f"{name}: {ranks.dtype} {list(ranks.shape)}"
        if not torch.isfinite(ranks).all() or (ranks.diff(dim=1) < 0).any():
            return f"{name}: {ranks}"
    return ""


TARGET = Target(make, mutate, read, wrong, (CheckpointError,))
