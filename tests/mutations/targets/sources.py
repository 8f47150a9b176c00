"""Data sets of other people: LeRobot's documents, tables and videos, and a table of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.clips import clip, write
from tests.lerobot_files import write_dataset
from tests.mutations.harness import Target
from tests.mutations.mutate import HOSTILE, bytes_of, document
from tests.mutations.targets.datasets import wrong
from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError

CAPTIONS = "file,sentence,success,tier,group,start_s,end_s\na.mp4,open the door,yes,,door,0,0.5\n"


def make(folder: Path) -> None:
    """A data set of each kind."""
    write_dataset(folder / "v3")
    write_dataset(folder / "v2", "v2.1", video=False)
    (folder / "clips").mkdir()
    write(folder / "clips" / "a.mp4", clip(20))
    (folder / "clips" / "captions.csv").write_text(CAPTIONS)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    """Damage one file; the data sets without it are removed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[rng.integers(len(files))]
    name = file.relative_to(folder).parts[0]
    (folder / "kind").write_text(name)
    if file.suffix in (".json", ".jsonl") and rng.integers(4):
        lines = file.read_text().splitlines()
        at = int(rng.integers(len(lines)))
        changed, what = document(json.loads(lines[at]), rng)
        lines[at] = json.dumps(changed)
        file.write_text("\n".join(lines))
    elif file.suffix == ".parquet" and rng.integers(4):
        what = cell(file, rng)
    elif file.suffix == ".csv" and rng.integers(4):
        cells = [line.split(",") for line in CAPTIONS.split("\n")[:2]]
        row, column = int(rng.integers(2)), int(rng.integers(7))
        cells[row][column] = str(HOSTILE[rng.integers(len(HOSTILE))])
        text = "\n".join(",".join(line) for line in cells)
        file.write_bytes(text.encode(errors="surrogatepass"))
        what = f"{row}, {column}: {cells[row][column][:20]!r}"
    else:
        data, what = bytes_of(file.read_bytes(), rng)
        file.write_bytes(data)
    return f"{name}, {file.name}: {what}"


def cell(file: Path, rng: np.random.Generator) -> str:
    """Another value in one place of a table, or none."""
    rows = pq.read_table(file).to_pylist()
    row = rows[rng.integers(len(rows))]
    name = sorted(row)[rng.integers(len(row))]
    hostile: tuple[Any, ...] = (None, -1, 2**40, 1e30, float("nan"), "x", [], [1.0] * 50, True)
    row[name] = hostile[rng.integers(len(hostile))]
    try:
        pq.write_table(pa.Table.from_pylist(rows), file)
    except (pa.ArrowException, TypeError):  # another type than the other rows'
        for other in rows:
            other[name] = row[name]
        pq.write_table(pa.Table.from_pylist(rows), file)
    return f"{name} = {str(row[name])[:30]}"


def read(folder: Path) -> list[Trajectory]:
    """All trajectories of the data set that was damaged."""
    kind = (folder / "kind").read_text()
    name = f"videos:{folder / kind}" if kind == "clips" else f"lerobot:{folder / kind}"
    return list(open_source(name, SourceOptions(size=32, fps=25)).stream())


TARGET = Target(make, mutate, read, wrong, (DatasetError,))
