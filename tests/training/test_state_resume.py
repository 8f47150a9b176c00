"""A training that is resumed equals one that never stopped (fault 59)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import Renamed, Tiny, state_bytes

from tests.mutations.resign import resign
from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import load_state
from vlp_gym.training.state import load_training_state, save_training_state


class Run:
    """A small training that draws from three generators; its schedule is a function of the step."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Tiny()
        self.optimizer = torch.optim.AdamW(
            [{"params": [self.model.first.weight]}, {"params": [*self.model.second.parameters()]}], lr=1e-2
        )
        self.order = np.random.default_rng(seed)
        self.legacy = np.random.Generator(np.random.MT19937(seed))
        self.noise = torch.Generator().manual_seed(seed)
        self.step = 0
        self.losses: list[float] = []

    @property
    def generators(self) -> dict[str, np.random.Generator | torch.Generator]:
        return {"order": self.order, "legacy": self.legacy, "noise": self.noise}

    def train(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-2 / (1 + self.step)
            x = torch.from_numpy(self.order.random((8, 4), dtype=np.float32))
            x += torch.randn(8, 4, generator=self.noise) * float(self.legacy.random())
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.losses.append(loss.item())

    def save(self, folder: Path) -> None:
        save_training_state(
            folder, model=self.model, optimizer=self.optimizer, step=self.step, generators=self.generators,
            extra={"losses": self.losses},
        )  # fmt: skip

    def load(self, folder: Path) -> None:
        self.step, extra = load_training_state(
            folder, model=self.model, optimizer=self.optimizer, generators=self.generators
        )
        self.losses = extra["losses"]


def test_resumed_training_is_bitwise_equal(tmp_path: Path) -> None:
    whole = Run()
    whole.train(10)
    stopped = Run()
    stopped.train(4)
    stopped.save(tmp_path)
    resumed = Run(seed=1)
    torch.manual_seed(99)
    resumed.load(tmp_path)
    resumed.train(6)
    assert resumed.step == 10
    assert resumed.losses == whole.losses
    assert state_bytes(resumed.model) == state_bytes(whole.model)
    assert resumed.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_saving_does_not_disturb_the_training(tmp_path: Path) -> None:
    whole, saving = Run(), Run()
    torch.manual_seed(0)
    whole.train(4)
    torch.manual_seed(0)
    for _ in range(4):
        saving.train(1)
        saving.save(tmp_path)
    assert saving.losses == whole.losses


def test_names_of_its_own_need_a_way_back(tmp_path: Path) -> None:
    model = Renamed()
    before = state_bytes(model)
    with pytest.raises(
        TypeError, match=r"^Renamed\.checkpoint_state\(\) has names of its own, such as bias: expected a"
    ):
        load_state(model, model.checkpoint_state(), "here")
    assert state_bytes(model) == before


def test_training_state_of_something_else_changes_nothing(tmp_path: Path) -> None:
    run = Run()
    run.train(1)
    run.save(tmp_path)
    path = tmp_path / "training.json"
    other = Tiny(width=5)
    before = state_bytes(other)
    message = f"{path}: made for another model; these weights differ: first.bias, first.weight, second.weight"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=other, optimizer=torch.optim.AdamW(other.parameters()))
    assert state_bytes(other) == before

    same = Tiny()
    before = state_bytes(same)
    message = f"{path}: made for AdamW with [1, 2] parameters in its groups, got SGD with [4]"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=same, optimizer=torch.optim.SGD(same.parameters()))
    fresh = Run(seed=2)
    message = f"{path}: expected the generators ['legacy', 'noise', 'order'], got []"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_training_state(tmp_path, model=same, optimizer=fresh.optimizer)
    assert state_bytes(same) == before

    document = json.loads(path.read_text())
    resign(tmp_path, {**document, "format_version": 9}, stem="training")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: expected format_version 1, got 9$"):
        fresh.load(tmp_path)


def test_training_state_truncated(tmp_path: Path) -> None:
    run = Run()
    run.train(1)
    run.save(tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: truncated or damaged .*$"):
        run.load(tmp_path)
