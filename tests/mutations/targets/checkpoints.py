"""The weights of every family of models, damaged with and without their hashes made right again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from tests.mutations import mutate as change
from tests.mutations.families import REFUSALS, ask, draw_family, family, prepare, wrong
from tests.mutations.harness import Target
from tests.mutations.resign import resign
from vlp_gym.models.protocol import Scores


def make(folder: Path) -> None:
    prepare(folder.parent / "families")


def mutate(folder: Path, rng: np.random.Generator) -> str:
    name = draw_family(rng)
    shutil.copytree(family(folder.parent / "families", name), folder, dirs_exist_ok=True)
    signed = bool(rng.integers(4))
    what = change.tensors(folder / "model.safetensors", rng)
    if signed:
        resign(folder)
    return f"{name}, {'signed' if signed else 'unsigned'}: {what}"


def read(folder: Path) -> Scores:
    return ask(folder, folder.parent / "families" / "goal.png")


TARGET = Target(make, mutate, read, wrong, REFUSALS)
