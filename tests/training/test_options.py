"""The options that every system has: which tasks are trained on, and which numbers are refused."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

from vlp_gym.errors import MissingExtraError
from vlp_gym.training.options import TrainOptions
from vlp_gym.training.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    def build(self, trajectories):
        return torch.nn.Identity(), None


class Elsewhere(Options):
    def packages(self):
        return {"torch": "a", "no_such_package": "b", "nor_this": "c", "nor_that": "b"}


def make(**options):
    return Options(data=(Path("data"),), **options)


def test_the_config_is_its_share_of_them():
    changed = {"steps": 3, "learning_rate": 0.5, "weight_decay": 0.25, "warmup": 0.75, "seed": 9, "precision": "bf16"}
    changed |= {"save_every": 2, "half": True, "hold_out": 0.25, "patience": 4, "log": "tensorboard"}
    assert make(**changed).config() == TrainConfig(**changed)
    assert {field.name for field in fields(TrainConfig)} == changed.keys()
    assert make().config() == TrainConfig()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps: expected at least 1, got 0"),
        ({"save_every": 0}, "--save-every: expected at least 1, got 0"),
        ({"weight_decay": -1.0}, "--weight-decay: expected at least 0, got -1.0"),
        ({"weight_decay": float("nan")}, "--weight-decay: expected at least 0, got nan"),
        ({"hold_out": 0.5, "patience": -1}, "--patience: expected at least 0, got -1"),
        ({"patience": 2}, "--patience: expected with --hold-out, whose episodes it looks at"),
        ({"warmup": 1.1}, "--warmup: expected a share from 0 to 1, got 1.1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError) as caught:
        make(**options)
    assert str(caught.value) == message


class TestTasks:
    EVERY = ("a", "b", "c")

    @pytest.mark.parametrize(
        ("tasks", "leave_out", "kept"),
        [
            ((), (), ["a", "b", "c"]),
            (("c", "a"), (), ["c", "a"]),
            ((), ("b",), ["a", "c"]),
            (("a", "b"), ("b",), ["a"]),
        ],
    )
    def test_chosen(self, tasks, leave_out, kept):
        assert make(tasks=tasks, leave_out=leave_out).training_tasks(self.EVERY) == kept

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tasks": ("e", "a", "d")}, "--tasks: expected training tasks of split ml45, got d, e"),
            ({"leave_out": ("d",)}, "--leave-out: expected training tasks of split ml45, got d"),
            ({"leave_out": ("a", "b", "c")}, "--leave-out: nothing is left to train on, got a, b, c"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError) as caught:
            make(split="ml45", **options).training_tasks(self.EVERY)
        assert str(caught.value) == message


def test_packages_that_are_not_installed():
    with pytest.raises(MissingExtraError) as caught:
        Elsewhere(data=()).check_packages()
    expected = 'training needs no_such_package, nor_this, nor_that: pip install "vlp_gym[b,c]"'
    assert str(caught.value) == expected
