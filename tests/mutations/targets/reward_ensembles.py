"""Learned rewards with their optimizers, changed with both hashes made right again."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from tests.mutations.harness import Target
from tests.mutations.pairs import damage
from tests.mutations.targets.preference_buffers import make as make_pairs
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.reward import RewardEnsemble


def make(folder: Path) -> None:
    make_pairs(folder)
    ensemble = RewardEnsemble(3, 2, hidden=(4, 3), standardize=True)
    ensemble.fit(PreferenceBuffer.load(folder), 2, target_accuracy=2.0)
    ensemble.save(folder)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    return damage(folder, "ensemble", rng)


def read(folder: Path) -> tuple[RewardEnsemble, torch.Tensor]:
    """Load the networks, ask them, and go on learning."""
    ensemble = RewardEnsemble.load(folder)
    states, actions = (torch.linspace(-1, 1, 4 * ensemble.settings[name]) for name in ("state_dim", "action_dim"))
    rewards = ensemble.predict(states.view(4, -1), actions.view(4, -1))
    if (ensemble.settings["state_dim"], ensemble.settings["action_dim"]) == (3, 2):
        ensemble.fit(PreferenceBuffer.load(folder), 1)
    return ensemble, rewards


def wrong(result: tuple[RewardEnsemble, torch.Tensor]) -> str:
    ensemble, rewards = result
    settings = ensemble.settings
    sizes = [settings["state_dim"] + settings["action_dim"], *settings["hidden"], 1]
    shapes = [[settings["members"], *pair] for pair in pairwise(sizes)]
    if [list(weight.shape) for weight in ensemble.weights] != shapes:
        return f"weights {[list(weight.shape) for weight in ensemble.weights]} of {settings}"
    if not (torch.isfinite(rewards).all() and (rewards.abs() <= 1).all() and rewards.shape == (4,)):
        return f"rewards {rewards}"
    if not (settings["learning_rate"] > 0 and math.isfinite(settings["learning_rate"])):
        return f"learning rate {settings['learning_rate']}"
    if not (ensemble.deviation > 0).all():
        return f"deviation {ensemble.deviation}"
    for state in ensemble.optimizer.state.values():
        if state.keys() != {"step", "exp_avg", "exp_avg_sq"} or (state["exp_avg_sq"] < 0).any() or state["step"] < 1:
            return f"optimizer {state}"
    return ""


TARGET = Target(make, mutate, read, wrong, (CheckpointError,))
