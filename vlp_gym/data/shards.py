"""Trajectories on disk: parquet shards, one row per trajectory, frames as encoded images.

Any parquet reader can read and stream the shards (HF `datasets` shows the frames as pictures), and a hub takes them as
they are. The column ``format_version`` tells which columns a row has: version 1 lacks that column, the sentences,
observations and actions. A folder may hold shards of both versions.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.trajectory import VARIANT_KINDS, Trajectory
from vlp_gym.errors import DatasetError, import_extra

FORMAT_VERSION = 2
JPEG_QUALITY = 95
MAX_FRAMES = 2_000
_BATCH = 32  # rows decoded at a time
_PLAIN = {"task": "string", "tier": "string", "seed": "int64", "camera": "string", "stride": "int64", "varied": "bool"}
_SERIES = {"step": "int64", "reward": "float32", "success": "bool", "episode_reward": "float32"}
_TABLES = ("positions", "observation", "action")  # lists of lists of float32


def encode_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """One parquet row: the frames as JPEG, arrays and tuples as lists.

    Raises:
        DatasetError: for an unknown kind of variant.
    """
    from PIL import Image

    encoded = []
    for frame in trajectory.frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    if unknown := sorted(trajectory.variants.keys() - set(VARIANT_KINDS)):
        raise DatasetError(f"{trajectory.name}: expected variants of {', '.join(VARIANT_KINDS)}, got {unknown}")
    return {
        "format_version": FORMAT_VERSION,
        **{name: getattr(trajectory, name) for name in (*_PLAIN, "opposite", "sibling")},
        "frames": encoded,
        **{name: _as_lists(value) for name, value in vars(trajectory).items() if name != "frames"},
        "positions": trajectory.positions.reshape(-1, 6).tolist(),
        "variants": {kind: list(trajectory.variants.get(kind, ())) for kind in VARIANT_KINDS},
    }


def _as_lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_lists(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def decode_trajectory(row: dict[str, Any]) -> Trajectory:
    """The inverse of `encode_trajectory`; raises DatasetError if the row is not a valid trajectory."""
    from PIL import Image, UnidentifiedImageError

    if (version := row.get("format_version", 1)) not in range(1, FORMAT_VERSION + 1):
        raise DatasetError(f"expected format version 1 to {FORMAT_VERSION}, got {version}; update vlp_gym to read it")
    _check_lengths(row)
    try:
        images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in row["frames"]]
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{_name(row)}: a frame cannot be decoded ({error}); collect this shard again") from error
    if len({image.shape for image in images}) != 1:
        raise DatasetError(f"{_name(row)}: frames of several sizes")
    kinds = {**_SERIES, **dict.fromkeys(_TABLES, "float32")}
    fields: dict[str, Any] = {name: row[name] for name in _PLAIN}
    fields |= {name: np.asarray(row[name], kind) for name, kind in kinds.items() if row.get(name) is not None}
    fields |= {"frames": np.stack(images), "positions": fields["positions"].reshape(-1, 2, 3)}
    return Trajectory(
        **fields,
        sentences=tuple(row.get("sentences") or ()),
        held_out=tuple(row.get("held_out") or ()),
        opposite=row.get("opposite"),
        sibling=row.get("sibling"),
        opposite_sentences=tuple(tuple(group) for group in row.get("opposite_sentences") or ()),
        variants={kind: tuple(group) for kind, group in (row.get("variants") or {}).items() if group},
    )


def _name(row: dict[str, Any]) -> str:
    return f"{row['task']}/{row['tier']}/{row['seed']}"


def _check_lengths(row: dict[str, Any]) -> None:
    """Raise a DatasetError that names the row if the lengths of its columns do not match."""
    name = _name(row)
    if not 0 < len(row["frames"]) <= MAX_FRAMES:
        raise DatasetError(f"{name}: expected 1 to {MAX_FRAMES} frames, got {len(row['frames'])}")
    lengths = {series: len(row[series]) for series in ("frames", "step", "reward", "success", "positions")}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"{name}: expected one step, reward, success and positions a frame, got {lengths}")
    steps = len(row["episode_reward"])
    for series, expected in (("observation", steps + 1), ("action", steps)):
        rows = row.get(series)
        if rows is None:
            continue
        if len(rows) != expected:
            raise DatasetError(
                f"{name}: expected {expected} rows of {series} for {steps} environment steps, got {len(rows)}"
            )
        if len(widths := sorted({len(values) for values in rows})) > 1:
            raise DatasetError(f"{name}: expected rows of {series} of one length, got {widths}")
    sentences, opposites = len(row.get("sentences") or ()), len(row.get("opposite_sentences") or ())
    if opposites not in (0, sentences):
        raise DatasetError(
            f"{name}: expected opposite_sentences for none or each of {sentences} sentences, got {opposites}"
        )


def write_shard(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write one parquet shard atomically.

    Raises:
        DatasetError: if a trajectory's arrays differ in length, or it has an unknown kind of variant.
    """
    datasets, _ = _import_libraries()
    value, several = datasets.Value, datasets.Sequence
    text, table = value("string"), several(several(value("float32")))
    features = {
        "format_version": value("int64"),
        **{name: value(kind) for name, kind in _PLAIN.items()},
        "opposite": text,
        "sibling": text,
        "frames": several(datasets.Image()),
        **{name: several(value(kind)) for name, kind in _SERIES.items()},
        "positions": table,
        "sentences": several(text),
        "held_out": several(text),
        "opposite_sentences": several(several(text)),
        "variants": dict.fromkeys(VARIANT_KINDS, several(text)),
        "observation": table,
        "action": table,
    }
    rows = [encode_trajectory(trajectory) for trajectory in trajectories]
    for row in rows:
        _check_lengths(row)
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    partial = path.with_suffix(f".partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset.to_parquet(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def shard_path(folder: Path, task: str, tier: str) -> Path:
    """Path of the shard of one task and tier."""
    return folder / "data" / f"{task}-{tier}.parquet"


def shard_tasks(*folders: str | Path) -> list[str]:
    """The tasks that the folders have shards of, sorted.

    Raises:
        DatasetError: if a folder holds no shards.
    """
    return sorted({_task_of(file) for file in _shard_files(folders, None)})


def stream_trajectories(*folders: str | Path, tasks: Sequence[str] | None = None) -> Iterator[Trajectory]:
    """Yield trajectories one by one, folder by folder, in the order of the shards' names.

    Raises:
        DatasetError: if a folder holds no shards, none has one of the tasks, or a shard is damaged or of a newer
            format; it names the shard.
    """
    _, parquet = _import_libraries()
    with ThreadPoolExecutor(2) as pool:
        for file in _shard_files(folders, tasks):
            try:
                with parquet.ParquetFile(file) as shard:
                    for batch in shard.iter_batches(_BATCH):
                        yield from pool.map(decode_trajectory, batch.to_pylist())
            except DatasetError as error:
                raise DatasetError(f"{file}: {error}") from error
            # pyarrow's own errors are subclasses of these; a column of a kind that it cannot read is the fourth.
            except (ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
                raise DatasetError(
                    f"{file.parents[1]}: a shard cannot be read ({file.name}: {error}); delete it and collect again"
                ) from error


def load_trajectories(
    *folders: str | Path, tasks: Sequence[str] | None = None, progress_bar: bool = True
) -> list[Trajectory]:
    """All trajectories in memory (about 38 kB per frame at 112 px); arguments and errors as `stream_trajectories`."""
    from tqdm import tqdm

    stream, reading = stream_trajectories(*folders, tasks=tasks), f"reading {' '.join(map(str, folders))}"
    return list(tqdm(stream, desc=reading, unit=" trajectories", disable=not progress_bar, leave=False))


def _shard_files(folders: Sequence[str | Path], tasks: Sequence[str] | None) -> list[Path]:
    files = []
    for folder in map(Path, folders):
        if not (own := sorted((folder / "data").glob("*.parquet"))):
            raise DatasetError(
                f"{folder}: expected parquet shards in {folder / 'data'}, found none; "
                f"run: vlp-gym collect metaworld --out {folder}"
            )
        files += own
    if tasks is None:
        return files
    found = {_task_of(file) for file in files}
    if missing := [task for task in tasks if task not in found]:
        where = " ".join(map(str, folders))
        raise DatasetError(f"{where}: no trajectories of {', '.join(missing)}; run vlp-gym collect with --tasks")
    return [file for file in files if _task_of(file) in tasks]


def _task_of(file: Path) -> str:
    return file.stem.rpartition("-")[0]  # no tier has a hyphen


def _import_libraries() -> tuple[Any, Any]:
    names = ("datasets", "pyarrow.parquet")
    datasets, parquet = (import_extra(name, "reading and writing datasets needs", "train") for name in names)
    datasets.disable_progress_bars()  # one bar for the whole collection is enough
    return datasets, parquet
