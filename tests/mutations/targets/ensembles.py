"""Ensembles that name each other, themselves and worse, with ranks changed, all signed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.mutations import mutate as change
from tests.mutations.families import REFUSALS, ask, family, wrong
from tests.mutations.harness import Target
from tests.mutations.resign import resign
from tests.mutations.targets.checkpoints import make
from vlp_gym.models.protocol import Scores


def mutate(folder: Path, rng: np.random.Generator) -> str:
    families = folder.parent / "families"
    members = [str(family(families, name)) for name in ("staged", "embedding")]
    names = [*members * 3, *(str(folder / name) for name in "abc"), f"furl:{folder / 'b'}", "gvl:x", f"{folder}/../"]
    names += [
        f"ensemble:mean|{members[0]}|{folder / 'b'}",
        "furl:" * 2000,
        "no-such/model",
        "\ud800",
        "clip:ViT-bigG-14",
    ]
    said = []
    for name in "abc":
        shutil.copytree(family(families, "ensemble"), folder / name)
        document = json.loads((folder / name / "config.json").read_text())
        count = 2 if rng.integers(4) else int(rng.integers(0, 40))
        document["config"]["members"] = [names[rng.integers(len(names))] for _ in range(count)]
        what = f"{count} members {document['config']['members'][:4]}"
        if rng.integers(4) == 0:
            what = change.tensors(folder / name / "model.safetensors", rng)
        if rng.integers(8) == 0:
            document["config"], what = change.document(document["config"], rng)
        resign(folder / name, document)
        said.append(f"{name}: {what}")
    return "; ".join(said)[:2000]


def read(folder: Path) -> Scores:
    return ask(folder / "a", folder.parent / "families" / "goal.png")


TARGET = Target(make, mutate, read, wrong, REFUSALS)
