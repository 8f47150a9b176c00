"""Options of `vlp-gym train` shared by all systems; each recipe extends them with its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from torch import nn

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import check_packages, did_you_mean
from vlp_gym.training.log import EXTRAS
from vlp_gym.training.recipe import Recipe, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainConfig, ABC):
    """Training data and initial weights; subclasses add a system's options, set defaults and build model and recipe.

    Attributes:
        data: one or more folders from `vlp-gym collect`, or other data sets, see `vlp-gym data --help`.
        split: training tasks. vlp and ml45: Meta-World without the five tasks that each holds out; rewind: ReWiND's
            twenty; all: all 50 tasks; maniskill: eight ManiSkill tasks; data: every task in the folders.
        tasks: train only on these tasks of the split; default: all of them.
        leave_out: do not train on these tasks, to validate on them (see `vlp-gym tune`).
        init: start from the weights of this model (a shipped name, a folder or a hub id) instead of random ones. Copies
            all weights of a model of the same system, or only the small encoders from another system. Its score
            constants are not copied. Do not use a model that has seen your held-out tasks.
        instructions: file with sentences for the tasks in the place of those in the data, from `vlp-gym instructions`.
        out: folder for the checkpoint, the saved state and the training curve; default: runs/SYSTEM-SPLIT.

    Raises:
        ValueError: if an option is out of range; the message names the command-line option.
    """

    data: tuple[Path, ...]
    split: Literal["vlp", "ml45", "rewind", "all", "maniskill", "data"] = "vlp"
    tasks: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    init: str | None = None
    instructions: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        self._check_steps()
        check_at_least(1, save_every=self.save_every)
        check_at_least(0, weight_decay=self.weight_decay, patience=self.patience)
        check_share(warmup=self.warmup)
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"--hold-out: expected a share from 0 to less than 1, got {self.hold_out}")
        if self.patience and not self.hold_out:
            raise ValueError("--patience: expected with --hold-out, whose episodes it looks at")
        if self.learning_rate is not None and not self.learning_rate > 0:  # None: a recipe's own
            raise ValueError(f"--learning-rate: expected more than 0, got {self.learning_rate}")

    @abstractmethod
    def build(self, trajectories: Sequence[Trajectory]) -> tuple[nn.Module, Recipe]:
        """A new model, initialised from torch's global generator, and its recipe, which may raise.

        Args:
            trajectories: all rollouts of the training tasks.
        """

    def recipe_of(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> Recipe:
        """The same recipe with other trajectories, such as held-out ones; to override where building a model is slow.

        Args:
            model: from `build`.
            trajectories: rollouts of the same tasks.
        """
        return self.build(trajectories)[1]

    def config(self) -> TrainConfig:
        """The settings of the training loop."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})

    def packages(self) -> dict[str, str]:
        """Package needed for this training -> the extra of vlp_gym that installs it."""
        needed = dict.fromkeys(("accelerate", "datasets", "PIL", "matplotlib", "scipy"), "train")
        return needed if self.log is None else {**needed, self.log: EXTRAS[self.log]}

    def check_packages(self) -> None:
        """Raise MissingExtraError if any of `packages` is not installed; imports none of them."""
        check_packages(self.packages(), "training needs")

    def training_tasks(self, every: Sequence[str]) -> list[str]:
        """The tasks to train on.

        Args:
            every: all training tasks of the split.

        Raises:
            ValueError: if an option names a task outside `every`, or no task is left.
        """
        for option, named in (("--tasks", self.tasks), ("--leave-out", self.leave_out)):
            if unknown := set(named) - set(every):
                hint = did_you_mean(min(unknown), every)
                raise ValueError(
                    f"{option}: expected training tasks of split {self.split}, got {', '.join(sorted(unknown))}{hint}"
                )
        kept = [task for task in self.tasks or every if task not in self.leave_out]
        if not kept:
            raise ValueError(f"--leave-out: nothing is left to train on, got {', '.join(self.leave_out)}")
        return kept

    def _check_steps(self) -> None:
        check_at_least(1, steps=self.steps)


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError if an option, given under its field name, is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")


def check_share(**values: float) -> None:
    """Raise ValueError if an option, given under its field name, is outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a share from 0 to 1, got {value}")
