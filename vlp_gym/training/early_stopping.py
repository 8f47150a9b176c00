"""Early stopping: each stage ends with the weights of its lowest held-out loss, and early if that no longer falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from vlp_gym.training.recipe import Recipe, Stage

BATCHES = 8  # of held-out clips in one measurement; always the same ones, so that two measurements can be compared
HELD_OUT = "held_out"  # name of the measured loss in a row of the history
History = Sequence[Mapping[str, float]]
"""One row per step: its number "step", and "held_out" where that loss was measured."""


@torch.no_grad()
def held_out_loss(model: nn.Module, recipe: Recipe, stage: Stage, accelerator: Any) -> float:
    """The mean loss on held-out batches, in eval mode; the model's modes are put back.

    Args:
        model: on the accelerator's device.
        recipe: made of the held-out episodes.
        stage: one of its stages.
        accelerator: accelerate's; its processes share the batches, and all get the same mean.

    Raises:
        FloatingPointError: if it is not finite.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    total = torch.zeros((), device=accelerator.device)
    for number in range(accelerator.process_index, BATCHES * accelerator.num_processes, accelerator.num_processes):
        batch = (stage.batch or recipe.batch)(number).to(accelerator.device)
        with accelerator.autocast():
            parts = stage.loss(model, batch, torch.Generator().manual_seed(number))
        total += parts["loss"].float() / BATCHES
    for module, training in modes.items():
        module.training = training
    loss = float(accelerator.reduce(total, "mean"))
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss on the held-out episodes is {loss}; lower --learning-rate")
    return loss


def stage_of(step: int, ends: Sequence[int]) -> tuple[int, int]:
    """The first step of the stage that a step belongs to, and the first after it.

    Args:
        step: number of a step.
        ends: the number of steps up to the end of each stage.
    """
    return next((first, end) for first, end in pairwise([0, *ends]) if step < end)


class Lowest(NamedTuple):
    """The lowest held-out loss of a stage, the step it was measured after, and how many were measured later."""

    loss: float
    step: int
    later: int


def lowest(history: History, first: int) -> Lowest:
    """The lowest held-out loss, the earliest of equals, measured from step `first` on."""
    losses = {}
    for row in reversed(history):
        if row["step"] < first:
            break
        if HELD_OUT in row:
            losses[int(row["step"])] = row[HELD_OUT]
    step = min(losses, key=lambda step: (losses[step], step))
    return Lowest(losses[step], step, sum(other > step for other in losses))


def next_step(history: History, ends: Sequence[int], patience: int) -> int:
    """The number of the step that follows the last one: the first of the next stage if the last one's is over.

    Args:
        history: the steps so far.
        ends: the number of steps up to the end of each stage.
        patience: measurements without a lower loss after which a stage is over; 0: never before its end.
    """
    if not history:
        return 0
    step = int(history[-1]["step"])
    if patience and HELD_OUT in history[-1]:
        first, end = stage_of(step, ends)
        if lowest(history, first).later >= patience:
            return end
    return step + 1
