"""The config of every family of models, changed with its hash made right again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.mutations import mutate as change
from tests.mutations.families import REFUSALS, draw_family, family, wrong
from tests.mutations.harness import Target
from tests.mutations.resign import resign
from tests.mutations.targets.checkpoints import make, read


def mutate(folder: Path, rng: np.random.Generator) -> str:
    name = draw_family(rng)
    shutil.copytree(family(folder.parent / "families", name), folder, dirs_exist_ok=True)
    path = folder / "config.json"
    document = json.loads(path.read_text())
    if rng.integers(8):
        document["config"], what = change.document(document["config"], rng)
    else:
        document, what = change.document(document, rng)
    resign(folder, document if isinstance(document, dict) else {"config": document})
    return f"{name}: {what}"


TARGET = Target(make, mutate, read, wrong, REFUSALS)
