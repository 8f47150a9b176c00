"""What the training loop needs to know of a system: its batches, its losses and its stages; how long and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]
"""Model, batch and a generator on the CPU -> "loss" to minimise, and its parts by name, all scalars."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        learning_rate: highest learning rate, after the warm-up; from there it falls by a cosine to a hundredth.
        weight_decay: weight decay of AdamW.
        warmup: share of the steps in which the learning rate rises, in [0, 1].
        seed: seeds all random draws: batches, augmentation and initial weights.
        precision: mixed precision; "no" trains in float32.
        save_every: steps between two saved states; an interrupted training resumes from the last one.
        half: store the finished checkpoint in half precision, as the shipped ones are.
    """

    steps: int = 700
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: int = 50
    half: bool = False


@dataclass(frozen=True)
class Stage:
    """Consecutive steps of a training that share a loss; the learning rate's schedule starts again with each stage.

    Attributes:
        steps: how many.
        loss: what is minimised.
        trained: the parameters that learn, all of them trainable ones of the model; None for every one.
        resting: submodules in eval mode, whose statistics must not change.
    """

    steps: int
    loss: Loss
    trained: Sequence[nn.Parameter] | None = None
    resting: Sequence[nn.Module] = ()


class Recipe(ABC):
    """What a system learns from: batches by their number, and the loss of each.

    Attributes:
        settings: JSON values; a run resumes only with the same.
    """

    settings: dict[str, Any]

    def stages(self, model: nn.Module, steps: int) -> Sequence[Stage]:
        """The parts of the training, in order; by default a single one of `steps` steps that trains everything."""
        return [Stage(steps, self.loss)]

    def prepare(self, model: nn.Module, *, progress_bar: bool) -> None:  # noqa: B027  # most have nothing to do
        """Called once before the first batch, with the weights that training starts or goes on from."""

    @abstractmethod
    def batch(self, number: int) -> Any:
        """Batch `number` of an endless sequence, the same whatever was drawn before; it has ``to(device)``."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss" to minimise, and its parts by name, all scalars; `generator` is on the CPU."""
