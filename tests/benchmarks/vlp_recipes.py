"""Images a second in training VLP over the small encoders: the published recipe against the mixed one.

python tests/benchmarks/vlp_recipes.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from measure import alternate, machine, spread, timed

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.models.vlp import VLPModel
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.vlp import VLPOptions


@dataclass(frozen=True)
class Options:
    """Whole steps: batch, loss, gradients and optimizer."""

    tasks: int = 14
    """Of 32 rollouts of each tier, made of noise."""
    frames: int = 10
    """Of a rollout."""
    steps: int = 3
    """In one measurement."""
    blocks: int = 5
    """Blocks of A B B A."""
    threads: int = 1
    """Torch threads."""


def main(options: Options) -> None:
    """Measure and print both recipes."""
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    rollouts = [
        noise(f"task-{task}", tier, options.frames, rng)
        for task in range(options.tasks)
        for tier in TIERS
        for _ in range(32)
    ]

    def stepper(recipe: str) -> Callable[[], float]:
        """A function that makes a step, and says how many images a second went through it."""
        torch.manual_seed(0)
        model, live = VLPOptions(data=(Path("none"),), backbone="small", recipe=recipe).build(rollouts)
        assert isinstance(model, VLPModel)
        model.train()
        optimizer, generator, images, number = live.optimizer(model, TrainConfig()), torch.Generator(), 0, 0
        encode = model.backbone.encode_frames

        def counted(frames: torch.Tensor) -> torch.Tensor:
            nonlocal images
            images += len(frames)
            return encode(frames)

        model.backbone.encode_frames = counted

        def step() -> None:
            nonlocal number
            live.loss(model, live.batch(number), generator)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            number += 1

        def rate() -> float:
            nonlocal images
            images = 0
            seconds = timed(step, options.steps)
            return images / options.steps / seconds

        step()
        return rate

    published, mixed = alternate(stepper("published"), stepper("mixed"), options.blocks)
    print(f"{machine()}; n = {2 * options.blocks} times {options.steps} step(s)")
    for name, values in {"published": published, "mixed": mixed}.items():
        print(f"images/s, {name:23} {spread(values)}")
    print(f"published / mixed                 {spread(published / mixed)}")


def noise(task: str, tier: str, frames: int, rng: np.random.Generator) -> Trajectory:
    """A rollout that shows nothing; an expert succeeds."""
    steps, zeros = 5 * np.arange(frames), np.zeros(frames, np.float32)
    pictures = rng.integers(0, 256, (frames, 112, 112, 3), np.uint8)
    success = np.full(frames, tier == "expert")
    numbers = zeros, success, np.zeros(int(steps[-1]), np.float32), np.zeros((frames, 2, 3), np.float32)
    return Trajectory(task, tier, 0, "corner2", 5, False, pictures, steps, *numbers, sentences=(f"do {task}",))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
