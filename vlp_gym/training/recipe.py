"""The interface between the training loop and a system: batches, losses, stages and settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vlp_gym.training.log import LogName

Loss = Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]
"""(model, batch, generator on the CPU) -> "loss" to minimise and its named parts, all scalars."""
_B = TypeVar("_B", bound="Batch")
_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the optimizer and of saving.

    Attributes:
        steps: optimizer steps.
        learning_rate: peak learning rate, reached after the warm-up; a cosine then lowers it to a hundredth.
        weight_decay: weight decay of AdamW.
        warmup: share of the steps in which the learning rate rises, in [0, 1].
        seed: seeds all random draws: batches, augmentation and initial weights.
        precision: mixed precision; "no" trains in float32.
        save_every: steps between saved states; an interrupted training resumes from the last one.
        half: store the final checkpoint in half precision, like the shipped ones.
        hold_out: share of the episodes of each task and tier that is not trained on, in [0, 1), such as 0.2. Afterwards
            the model is judged on them, and the report written into the folder held-out.
        patience: with hold_out, the loss on these episodes is measured at every `save_every`, the weights of its lowest
            are kept, and training stops after so many measurements in a row without a lower one; 0 trains all steps
            and keeps the last weights.
        log: also log every step to TensorBoard, Weights & Biases (WANDB_MODE=offline: without a network) or Trackio;
            losses are always in history.json and training.png.
    """

    steps: int = 700
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: int = 50
    half: bool = False
    hold_out: float = 0.0
    patience: int = 0
    log: LogName | None = None


@dataclass(frozen=True)
class Stage:
    """Consecutive training steps with one loss; each stage restarts the learning-rate schedule.

    Attributes:
        steps: number of optimizer steps.
        loss: function to minimise.
        trained: parameters to train, a subset of the model's trainable ones; None trains all of them.
        resting: submodules kept in eval mode, so that their statistics do not change.
        batch: the stage's own numbered batches, see `Recipe.batch`; None: the recipe's.
    """

    steps: int
    loss: Loss
    trained: Sequence[nn.Parameter] | None = None
    resting: Sequence[nn.Module] = ()
    batch: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Batch:
    """Base class of the recipes' batches."""

    def to(self: _B, device: torch.device) -> _B:
        """The same batch with its tensors on another device."""
        return replace(self, **{name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)})


class Recipe(ABC):
    """Numbered training batches and their loss.

    Attributes:
        settings: JSON values; a run resumes only with the same settings.
    """

    settings: dict[str, Any]

    def stages(self, model: nn.Module, steps: int) -> Sequence[Stage]:
        """The stages of the training, in order; by default one stage of `steps` steps that trains everything."""
        return [Stage(steps, self.loss)]

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """The optimizer of the model's trainable parameters: by default AdamW, with the same decay for all of them."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))

    def prepare(self, model: nn.Module, *, progress_bar: bool) -> None:  # noqa: B027  # most have nothing to do
        """Called once before the first batch, after the initial or resumed weights are loaded."""

    @abstractmethod
    def batch(self, number: int) -> Any:
        """Batch `number` of an endless sequence, independent of earlier calls; it has ``to(device)``, see `Batch`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            model: the model, in the training mode of the stage.
            batch: a batch of this recipe, on the model's device.
            generator: draws the augmentation, on the CPU.

        Returns:
            "loss" to minimise and its named parts, all scalars.

        Raises:
            TypeError: for a model of another system.
        """


def expect_model(model: nn.Module, kind: type[_M]) -> _M:
    """The model, if it is of class `kind`; raises TypeError for any other."""
    if not isinstance(model, kind):
        raise TypeError(f"expected a {kind.__name__}, got {type(model).__name__}")
    return model
