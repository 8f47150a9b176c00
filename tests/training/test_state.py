"""Saved training states: what is refused changes nothing, and what cannot be loaded is not saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.mutations.targets.training_states import Training
from vlp_gym.errors import CheckpointError
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.training.state import load_training_state, save_training_state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(step=-1), "step: expected greater than or equal to 0, got -1"),
        (lambda d, t: d["param_groups"][0].update(lr=None), "param_groups.0.lr: expected a value like 0.1, got None"),
        (
            lambda d, t: d["param_groups"][1].update(betas=[0.9, 1.0]),
            "param_groups.1.betas: expected a value like (0.9, 0.999), got [0.9, 1.0]",
        ),
        (
            lambda d, t: d["param_groups"][0].update(params=[0, 0]),
            "param_groups.0.params: expected a value like [0, 1], got [0, 0]",
        ),
        (
            lambda d, t: d["param_groups"][0].pop("params"),
            "made for AdamW with [0, 2] parameters in its groups, got AdamW with [2, 2]",
        ),
        (
            lambda d, t: t.pop("optimizer.0.exp_avg"),
            "optimizer.0: expected ['exp_avg', 'exp_avg_sq', 'step'], got ['exp_avg_sq', 'step']",
        ),
        (
            lambda d, t: t["optimizer.1.exp_avg_sq"].fill_(-1),
            "optimizer.1.exp_avg_sq: expected numbers from 0 to inf, got -1",
        ),
        (
            lambda d, t: t.update({"optimizer.7.step": torch.ones(())}),
            "optimizer.'7.step': this AdamW keeps no such state",
        ),
        (
            lambda d, t: d["optimizer_scalars"].update({"0": {"step": 1}}),
            "optimizer.'0.step': this AdamW keeps no such state",
        ),
        (lambda d, t: t["model.0.weight"].fill_(torch.nan), "model.0.weight: expected finite numbers, got NaN or inf"),
        (lambda d, t: t["rng.cpu"].fill_(255), "no state of a generator of torch (Invalid mt19937 state)"),
        (lambda d, t: t["rng.named.noise"].fill_(255), "no state of a generator of torch (Invalid mt19937 state)"),
        (
            lambda d, t: d["numpy_generators"].update(noise={}),
            "the generator noise is of torch in one and of NumPy in the other",
        ),
        (lambda d, t: t.update(more=torch.ones(1)), "unknown tensors: more"),
    ],
)
def test_a_refused_state_changes_nothing(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], Any], message: str
) -> None:
    Training(0).save(tmp_path)
    document, tensors = read_pair(tmp_path, stem="training")
    change(document, tensors)
    write_pair(tmp_path, document, tensors, stem="training")
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tmp_path}/training.json: {message}')}$"):
        Training(1).load(tmp_path)  # compares all that it holds before and after


def test_a_state_with_nan_is_not_saved(tmp_path: Path) -> None:
    training = Training(0)
    training.save(tmp_path)
    with torch.no_grad():
        training.model[0].weight.fill_(torch.nan)
    message = f"{tmp_path}: the training state was not saved: model.0.weight: expected finite numbers, got NaN or inf"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        training.save(tmp_path)
    training.load(tmp_path)
    assert torch.isfinite(training.model[0].weight).all()


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "Adamax"])
def test_every_optimizer_comes_back(tmp_path: Path, kind: str) -> None:
    options = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}}.get(kind, {})
    models = [nn.Linear(3, 1) for _ in range(2)]
    optimizers = [getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options) for model in models]
    rows = torch.linspace(-1, 1, 12).view(4, 3)

    def step(number: int) -> float:
        loss = models[number](rows).square().mean()
        optimizers[number].zero_grad()
        loss.backward()
        optimizers[number].step()
        return loss.item()

    step(0)
    torch.optim.lr_scheduler.StepLR(optimizers[0], 1)  # adds an entry "initial_lr" to the groups
    save_training_state(tmp_path, model=models[0], optimizer=optimizers[0], step=1)
    load_training_state(tmp_path, model=models[1], optimizer=optimizers[1])
    losses = [[step(number) for _ in range(3)] for number in (0, 1)]
    assert losses[0] == losses[1]
