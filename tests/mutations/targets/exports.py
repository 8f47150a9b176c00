"""Data sets that we exported: the fields beside them, and Minari's HDF5 and documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.mutations.harness import Target
from tests.mutations.mutate import bytes_of, document
from tests.mutations.targets.datasets import wrong
from tests.mutations.targets.sources import cell
from tests.rollouts import painted, with_steps
from vlp_gym.data.exports import KINDS, export
from vlp_gym.data.fields import FIELDS
from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError


def make(folder: Path) -> None:
    """The same rollouts in each format."""
    for kind in KINDS:
        rollouts = [with_steps(painted("push-v3", "expert", number, frames=4)) for number in range(2)]
        export(rollouts, kind, folder / kind, 5.0)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    """Damage one file, mostly the fields."""
    kind = KINDS[rng.integers(len(KINDS))]
    (folder / "kind").write_text(kind)
    files = sorted(path for path in (folder / kind).rglob("*") if path.is_file())
    fields = [path for path in files if path.name == FIELDS]
    others = [path for path in files if path.suffix in (".json", ".hdf5")]
    file = (others if others and rng.integers(3) == 0 else fields)[0 if rng.integers(2) else -1]
    if file.suffix == ".parquet" and rng.integers(4):
        what = cell(file, rng)
    elif file.suffix == ".json" and rng.integers(4):
        changed, what = document(json.loads(file.read_text()), rng)
        file.write_text(json.dumps(changed))
    else:
        data, what = bytes_of(file.read_bytes(), rng)
        file.write_bytes(data)
    return f"{kind}, {file.name}: {what}"


def read(folder: Path) -> list[Trajectory]:
    """All trajectories of the data set that was damaged."""
    kind = (folder / "kind").read_text()
    return list(open_source(f"{kind}:{folder / kind}", SourceOptions(size=32)).stream())


TARGET = Target(make, mutate, read, wrong, (DatasetError,))
