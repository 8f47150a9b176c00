"""What a training needs to know of a system: its batches and its loss, how long and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps on everything; 0 for the relevance alone.
        relevance_steps: further steps of the compact model on its relevance alone, without augmentation: with all
            else at rest it learns in a few hundred steps what it does not in a thousand joint ones.
        tasks_per_batch: G.
        clips_per_task: C, at least 3.
        focus: tasks that are in every batch, at most half of it.
        learning_rate: highest, after the warm-up; falls by a cosine to a hundredth.
        weight_decay: of AdamW.
        warmup: share of the steps.
        seed: of batches, augmentation and initial weights.
        precision: "no" (fp32), "bf16" or "fp16".
        save_every: steps between two saved states.
        half: store the finished checkpoint in half precision.
    """

    steps: int = 700
    relevance_steps: int = 400
    tasks_per_batch: int = 14
    clips_per_task: int = 6
    focus: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: int = 50
    half: bool = False


class Recipe(ABC):
    """What a system learns from: batches by their number, and the loss of each.

    Attributes:
        settings: JSON values; a run resumes only with the same.
    """

    settings: dict[str, Any]

    def prepare(self, model: nn.Module, *, progress_bar: bool) -> None:  # noqa: B027  # most have nothing to do
        """Called once before the first batch, with the weights that training starts or goes on from."""

    @abstractmethod
    def batch(self, number: int) -> Any:
        """Batch `number` of an endless sequence, the same whatever was drawn before; it has ``to(device)``."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss" to minimise, and its parts by name, all scalars; `generator` is on the CPU."""
