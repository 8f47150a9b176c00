"""Trajectories on disk: parquet shards, one row per trajectory, frames as encoded images.

Any parquet reader can read and stream the shards (HF `datasets` shows the frames as pictures), and a hub takes them as
they are. The column ``format_version`` tells which columns a row has: version 1 lacks that column, the sentences,
observations and actions. A folder may hold shards of both versions.

Nothing in a shard is trusted: see `rows` for the file, `frames.picture` for its frames and `check` for everything else.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.check import check_fields, check_size, name_of
from vlp_gym.data.trajectory import ALL_TIERS, VARIANT_KINDS, Trajectory
from vlp_gym.errors import DatasetError, import_extra
from vlp_gym.frames.picture import decode_picture
from vlp_gym.storage import write_atomic

FORMAT_VERSION = 2
JPEG_QUALITY = 95
MAX_FRAME_PIXELS = 4096 * 2304
MAX_ENTRIES = 50_000  # frames or sentences of a row
# A shard may unfold to much more than its size: one frame can be stored once and shown a million times.
FREE_BYTES = 256 * 2**20
BYTES_PER_BYTE = 200  # of frames of one colour; of others, up to 20
_PLAIN = {"task": "string", "tier": "string", "seed": "int64", "camera": "string", "stride": "int64", "varied": "bool"}
_SERIES = {"step": "int64", "reward": "float32", "success": "bool", "episode_reward": "float32"}
_TABLES = ("positions", "observation", "action")  # lists of lists of float32
_FIELDS = (*_PLAIN, *_SERIES, "positions")
_REQUIRED = (*_FIELDS, "frames")


def encode_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """One parquet row, unchecked: the frames as JPEG, arrays and tuples as lists."""
    from PIL import Image

    encoded = []
    for frame in trajectory.frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return {**encode_fields(trajectory), "frames": encoded}


def encode_fields(trajectory: Trajectory) -> dict[str, Any]:
    """A parquet row of everything but the frames, unchecked."""
    return {
        "format_version": FORMAT_VERSION,
        **{name: getattr(trajectory, name) for name in (*_PLAIN, "opposite", "sibling")},
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
    schema = _features().arrow_schema
    import pyarrow

    known = pyarrow.schema([schema.field(name) for name in row if name in schema.names])
    try:
        batch = pyarrow.RecordBatch.from_pylist([{name: row[name] for name in known.names}], known)
    except (ValueError, TypeError) as error:  # pyarrow's own errors are subclasses
        raise DatasetError(f"{name_of(row)}: {error}") from error
    with ThreadPoolExecutor(2) as pool:
        return _decode(batch, pool)


def _decode(batch: Any, pool: ThreadPoolExecutor) -> Trajectory:
    """The trajectory of a batch of one row; ValueError if the row has not the columns of one, else DatasetError."""
    fields = decode_fields(batch, _REQUIRED)
    try:
        frames = _frames(fields["frames"], fields, pool)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{name_of(fields)}: {error}") from error
    return Trajectory(**{**fields, "frames": frames})


def decode_fields(batch: Any, required: Sequence[str] = _FIELDS) -> dict[str, Any]:
    """The checked fields of the trajectory in a batch of one row, by name.

    Args:
        batch: a record batch; it may lack the columns of optional fields.
        required: the columns that it must have. With "frames", these are among the fields, still encoded.

    Raises:
        ValueError: a column is missing.
        DatasetError: the row breaks the contract of `Trajectory`, or is of a newer format.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if missing := [name for name in required if name not in columns]:
        raise ValueError(f"expected the columns {', '.join(missing)}, found none")
    version = columns["format_version"][0].as_py() if "format_version" in columns else 1
    if version not in range(1, FORMAT_VERSION + 1):
        raise DatasetError(f"expected format version 1 to {FORMAT_VERSION}, got {version}; update vlp_gym to read it")
    row = {name: columns.pop(name)[0].as_py() for name in _PLAIN}
    try:
        row |= {name: _value(name, column) for name, column in columns.items()}
        if missing := [name for name in required if row[name] is None]:
            raise ValueError(f"expected a value of {', '.join(missing)}, got null")
        stored = {"frames": row.pop("frames")} if "frames" in required else {}
        check_fields(row, len(stored.get("frames", row["step"])))
        if row["positions"].shape[1] != 6:
            raise ValueError(f"expected 6 positions a frame, got {row['positions'].shape[1]}")
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{name_of(row)}: {error}") from error
    return {
        **{name: row[name] for name in (*_PLAIN, *_SERIES)},
        **stored,
        "positions": row["positions"].reshape(-1, 2, 3),
        "sentences": tuple(row.get("sentences") or ()),
        "held_out": tuple(row.get("held_out") or ()),
        "opposite": row.get("opposite"),
        "sibling": row.get("sibling"),
        "opposite_sentences": tuple(tuple(group) for group in row.get("opposite_sentences") or ()),
        "variants": {kind: tuple(group) for kind, group in (row.get("variants") or {}).items() if group},
        "observation": row.get("observation"),
        "action": row.get("action"),
    }


def _value(name: str, column: Any) -> Any:
    """What one row has in a column: numbers as an array, and None for null."""
    if column.null_count:
        return None
    if name not in _SERIES and name not in _TABLES:
        if (entries := _entries(column)) > MAX_ENTRIES:
            raise ValueError(f"{name}: expected at most {MAX_ENTRIES} entries, got {entries}")
        return column[0].as_py()
    values, shape = column.flatten(), [-1]
    if name in _TABLES:
        widths = np.unique([-1 if width is None else width for width in values.value_lengths().to_pylist()])
        if len(widths) > 1:
            raise ValueError(f"expected rows of {name} of one length, got {widths[:9].tolist()}")
        values, shape = values.flatten(), [len(values), *(widths if len(values) else [0])]
    if values.null_count:
        raise ValueError(f"{name}: expected numbers, got null")
    return np.array(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _entries(column: Any) -> int:
    """Entries of a column of lists, at all depths."""
    from pyarrow import types

    if types.is_struct(column.type):
        return sum(_entries(part) for part in column.flatten())
    nested = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    return len(column) + (_entries(column.flatten()) if nested else 0)


def _frames(encoded: Sequence[Any], row: dict[str, Any], pool: ThreadPoolExecutor) -> np.ndarray:
    """Decode frames of one size, uint8 ``[F, H, W, 3]``."""

    def decode(number: int, max_pixels: int) -> np.ndarray:
        data = (encoded[number] or {}).get("bytes")  # a path beside it is never opened
        try:
            if data is None:
                raise ValueError("expected its bytes, got null")
            return decode_picture(data, max_pixels=max_pixels)
        except ValueError as error:
            raise ValueError(f"frame {number} cannot be decoded ({error}); collect this shard again") from error

    first = decode(0, MAX_FRAME_PIXELS)
    check_size(row, len(encoded), *first.shape[:2])
    frames = np.empty((len(encoded), *first.shape), np.uint8)
    most = max(first.shape[0] * first.shape[1], 10**6)

    def fill(number: int) -> None:
        picture = decode(number, most)
        if picture.shape != first.shape:
            raise ValueError("frames of several sizes")
        frames[number] = picture

    list(pool.map(fill, range(len(encoded))))
    return frames


def write_shard(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write one parquet shard atomically.

    Args:
        trajectories: of one task and tier.
        path: see `shard_path`.

    Raises:
        DatasetError: a trajectory breaks its contract, see `Trajectory`, or its task or tier are not those of the path.
    """
    datasets, features = _datasets(), _features()
    for trajectory in trajectories:
        _check(trajectory, path)
    made = datasets.Dataset.from_list([encode_trajectory(trajectory) for trajectory in trajectories], features)
    shard = io.BytesIO()  # for a path with "::" the library would open something else
    made.to_parquet(shard, write_batch_size=32)  # of frames, so that pages are small
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, shard.getvalue())


def _check(trajectory: Trajectory, path: Path) -> None:
    frames, fields = trajectory.frames, vars(trajectory)
    check_fields(fields, len(frames))
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise DatasetError(
            f"{name_of(fields)}: expected uint8 frames [F, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )
    check_size(fields, *frames.shape[:3])
    _check_place(trajectory, path)


def shard_path(folder: Path, task: str, tier: str) -> Path:
    """Path of the shard of one task and tier."""
    return folder / "data" / f"{task}-{tier}.parquet"


def shard_tasks(*folders: str | Path) -> list[str]:
    """The tasks that the folders have shards of, sorted.

    Raises:
        DatasetError: if a folder holds no shards.
    """
    return sorted({_task_of(file) for file in _shard_files(folders, None)})


def stream_trajectories(
    *folders: str | Path, tasks: Sequence[str] | None = None, keep: Callable[[str, str], bool] | None = None
) -> Iterator[Trajectory]:
    """Yield trajectories one by one, folder by folder, in the order of the shards' names.

    Args:
        folders: with shards.
        tasks: only these; None: all.
        keep: is asked about each trajectory, by task and tier, before anything of it is decoded or checked, and may
            leave it out by False.

    Raises:
        DatasetError: if a folder holds no shards, none has one of the tasks, or a shard is damaged, breaks the contract
            of `Trajectory`, unfolds to much more than its size, or is of a newer format; it names the shard.
    """
    allowed, schema = FREE_BYTES, _features().arrow_schema
    from vlp_gym.data.rows import RowReader

    with ThreadPoolExecutor(2) as pool, RowReader(schema) as reader:
        for file in _shard_files(folders, tasks):
            number = 0
            try:
                allowed += BYTES_PER_BYTE * file.stat().st_size
                for batch in reader.read(file):
                    if keep is None or keep(_task_of(file), _tier_of(file)):
                        trajectory = _decode(batch, pool)
                        _check_place(trajectory, file)
                        allowed -= _cost(trajectory)
                        if allowed < 0:
                            raise DatasetError("the shard unfolds to much more than its size; collect it again")
                        yield trajectory
                    number += 1
                if not number:
                    raise ValueError("it has no rows")
            except DatasetError as error:
                raise DatasetError(f"{file}, row {number}: {error}") from error
            except (ValueError, OSError) as error:
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


def _check_place(trajectory: Trajectory, file: Path) -> None:
    if file.stem != (name := f"{trajectory.task}-{trajectory.tier}"):
        raise DatasetError(f"{trajectory.name}: expected it in a shard {name}.parquet, got {file.name}")


def _cost(trajectory: Trajectory) -> int:
    """Bytes in memory, and more for each row and frame, as small ones take time."""
    arrays = [value for value in vars(trajectory).values() if isinstance(value, np.ndarray)]
    return sum(array.nbytes for array in arrays) + 2**14 * (len(trajectory.frames) + 8)


def _shard_files(folders: Sequence[str | Path], tasks: Sequence[str] | None) -> list[Path]:
    files = []
    for folder in map(Path, folders):
        try:
            own = sorted(path for path in (folder / "data").iterdir() if path.suffix == ".parquet")
        except (FileNotFoundError, NotADirectoryError):
            own = []
        except (OSError, ValueError) as error:
            raise DatasetError(f"{folder}: the folder cannot be read ({error})") from error
        if not own:
            raise DatasetError(
                f"{folder}: expected parquet shards in {folder / 'data'}, found none; "
                f"run: vlp-gym collect metaworld --out {folder}"
            )
        for path in own:
            if not path.is_file():  # reading a pipe or a device may never end
                raise DatasetError(f"{path}: expected a file; remove the folder, pipe, device or dead link")
            if not path.stem.endswith(tuple(f"-{tier}" for tier in ALL_TIERS)):
                raise DatasetError(f"{path}: expected a name TASK-TIER.parquet, such as push-v3-expert.parquet")
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


def _tier_of(file: Path) -> str:
    return file.stem.rpartition("-")[2]


def fields_schema() -> Any:
    """The arrow schema of `encode_fields`."""
    schema = _features().arrow_schema
    return schema.remove(schema.get_field_index("frames")).remove_metadata()


def _features() -> Any:
    """The columns as HF `datasets` has them, with frames as pictures."""
    datasets = _datasets()
    value, several = datasets.Value, datasets.Sequence
    text, table = value("string"), several(several(value("float32")))
    return datasets.Features(
        {
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
    )


def _datasets() -> Any:
    datasets = import_extra("datasets", "reading and writing datasets needs", "train")
    datasets.disable_progress_bars()  # one bar for the whole collection is enough
    return datasets
