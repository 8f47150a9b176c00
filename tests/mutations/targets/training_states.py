"""States of a training, changed with both hashes made right again; a refused one must change nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.mutations.harness import Target
from tests.mutations.pairs import damage
from vlp_gym.errors import CheckpointError
from vlp_gym.training.state import load_training_state, save_training_state


class Training:
    """A network, its optimizer and its generators after a few steps."""

    def __init__(self, seed: int, steps: int = 3) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        groups = [{"params": self.model[0].parameters()}, {"params": self.model[2].parameters(), "lr": 0.01}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.1)
        self.order, self.noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            self.step()

    def step(self) -> torch.Tensor:
        rows = torch.from_numpy(self.order.normal(size=(5, 3)).astype(np.float32))
        loss = self.model(rows + torch.randn(5, 3, generator=self.noise)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @property
    def generators(self) -> dict[str, Any]:
        return {"order": self.order, "noise": self.noise}

    def everything(self) -> dict[str, Any]:
        """A copy of all that a state restores."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "order": self.order.bit_generator.state, "noise": self.noise.get_state(), "cpu": torch.get_rng_state(),
            }
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        save_training_state(
            folder, model=self.model, optimizer=self.optimizer, step=3, generators=self.generators, extra={"loss": 1.5}
        )

    def load(self, folder: Path) -> int:
        """Load, or raise and be the same as before."""
        before = self.everything()
        try:
            step, _ = load_training_state(
                folder, model=self.model, optimizer=self.optimizer, generators=self.generators
            )
        except CheckpointError:
            _same(before, self.everything())
            raise
        return step


def make(folder: Path) -> None:
    Training(0).save(folder)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    return damage(folder, "training", rng)


def read(folder: Path) -> tuple[int, Training, bool]:
    """Load into another training, and go on; a refusal must leave it as it was."""
    training = Training(1)
    step = training.load(folder)
    finite = all(torch.isfinite(weight).all() for weight in training.model.state_dict().values())
    training.step()
    return step, training, finite


def wrong(result: tuple[int, Training, bool]) -> str:
    step, training, finite = result
    if not isinstance(step, int) or step < 0 or not finite:
        return f"step {step}, finite {finite}"
    for parameter in (*training.model[0].parameters(), *training.model[2].parameters()):
        state = training.optimizer.state[parameter]
        if state.keys() != {"step", "exp_avg", "exp_avg_sq"} or (state["exp_avg_sq"] < 0).any():
            return f"optimizer {state}"
        if state["exp_avg"].shape != parameter.shape or state["exp_avg_sq"].shape != parameter.shape:
            return f"optimizer {state}"
    for group in training.optimizer.param_groups:
        numbers = [group["lr"], group["eps"], group["weight_decay"], *group["betas"]]
        if not all(type(x) in (int, float) and 0 <= x < 1e300 for x in numbers) or not max(group["betas"]) < 1:
            return f"group {group}"
    return ""


def _same(before: Any, after: Any) -> None:
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            _same(before[key], after[key])
    else:
        assert before == after


TARGET = Target(make, mutate, read, wrong, (CheckpointError,))
