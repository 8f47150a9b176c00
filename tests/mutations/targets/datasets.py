"""Shards: parquet rewritten with other columns, types, values and nulls, bombs, damaged bytes, files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.mutations.harness import Target
from tests.mutations.mutate import bytes_of, document
from tests.mutations.targets.pictures import hostile
from tests.rollouts import painted, write_tasks, write_version_1
from vlp_gym.data.shards import load_trajectories, shard_path
from vlp_gym.data.trajectory import ALL_TIERS, VARIANT_KINDS, Trajectory
from vlp_gym.errors import DatasetError

TYPES = (
    pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(),
    pa.null(), pa.timestamp("ns"), pa.decimal128(20, 3), pa.list_(pa.float64()), pa.large_list(pa.int32()),
    pa.list_(pa.string()), pa.list_(pa.float32(), 16), pa.list_(pa.list_(pa.float64())),
    pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.list_(pa.list_(pa.float32()))), pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int64()),
    pa.list_(pa.null()), pa.list_(pa.struct({"bytes": pa.large_binary(), "path": pa.string()})),
)  # fmt: skip


def make(folder: Path) -> None:
    """Two shards of version 2, one of version 1; with all that a rollout can carry."""
    write_tasks(folder, [painted("push-v3", "expert", number) for number in range(2)])
    write_tasks(folder, [painted("push-v3", "random", 3, frames=2)])
    write_version_1([painted("reach-v3", "medium", 4, frames=3)], shard_path(folder, "reach-v3", "medium"))


def mutate(folder: Path, rng: np.random.Generator) -> str:
    """Change one shard."""
    files = sorted((folder / "data").iterdir())
    file = files[rng.integers(len(files))]
    kinds = (
        _bytes,
        _bytes,
        _bytes,
        _value,
        _value,
        _value,
        _value,
        _type,
        _columns,
        _nulls,
        _frame,
        _frame,
        _bomb,
        _file,
    )
    before = file.read_bytes()
    try:
        what = kinds[rng.integers(len(kinds))](file, rng)
    except pa.ArrowException:  # parquet has no place for it, as for an empty struct
        file.write_bytes(before)
        what = _bytes(file, rng)
    return f"{file.name}: {what}"


def _bytes(file: Path, rng: np.random.Generator) -> str:
    data = file.read_bytes()
    if rng.integers(2):  # the metadata, at the end
        size = int.from_bytes(data[-8:-4], "little")
        footer, what = bytes_of(data[-8 - size : -8], rng)
        file.write_bytes(data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        return f"footer: {what}"
    data, what = bytes_of(data, rng)
    file.write_bytes(data)
    return what


def _value(file: Path, rng: np.random.Generator) -> str:
    """Change one place of one row, as it would be in JSON; columns keep their type where the value fits."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    number = int(rng.integers(len(rows)))
    pictures = [frame["bytes"] for frame in rows[number]["frames"]]
    row = {**rows[number], "frames": [{"bytes": f"picture {n}", "path": None} for n in range(len(pictures))]}
    if rng.integers(2):  # any column as likely as another, though most entries are sentences
        name = table.column_names[rng.integers(table.num_columns)]
        part, what = document({name: row[name]}, rng)
        row = {**{key: value for key, value in row.items() if key != name}, **part}
    else:
        row, what = document(row, rng)
    rows[number] = json.loads(json.dumps(row), object_hook=lambda o: _with_pictures(o, pictures))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        kind = table.schema.field(name).type if name in table.column_names else None
        columns.append(_array(values, kind))
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), file)
    return what


def _with_pictures(value: dict[str, Any], pictures: list[bytes]) -> dict[str, Any]:
    for key, entry in value.items():
        if isinstance(entry, str) and entry.startswith("picture ") and entry[8:].isdigit():
            value[key] = pictures[min(int(entry[8:]), len(pictures) - 1)]
    return value


def _array(values: list[Any], kind: Any) -> pa.Array:
    for wanted in (kind, None):
        try:
            return pa.array(values, wanted)
        except (
            ValueError,
            TypeError,
            OverflowError,
            NotImplementedError,
        ):  # another type than the column's, or several
            continue
    return pa.array([repr(value)[:1000].encode(errors="replace").decode() for value in values])


def _type(file: Path, rng: np.random.Generator) -> str:
    table = pq.read_table(file)
    at, kind = int(rng.integers(table.num_columns)), TYPES[rng.integers(len(TYPES))]
    name = table.column_names[at]
    try:
        column = table.column(name).cast(kind, safe=False)
    except (ValueError, NotImplementedError, TypeError):
        column = pa.nulls(len(table), kind)
    pq.write_table(table.set_column(at, name, column), file)
    return f"{name} as {kind}"


def _columns(file: Path, rng: np.random.Generator) -> str:
    table = pq.read_table(file)
    at = int(rng.integers(table.num_columns))
    name, kind = table.column_names[at], ("drop", "rename", "twice", "add", "swap", "rows")[rng.integers(6)]
    other = table.column_names[rng.integers(table.num_columns)]
    if kind == "drop":
        table = table.remove_column(at)
    elif kind == "rename":
        table = table.rename_columns([f"{n}_" if n == name else n for n in table.column_names])
    elif kind == "twice":
        table = table.append_column(name, table.column(other))
    elif kind == "add":
        table = table.append_column("more", table.column(name))
    elif kind == "swap":
        table = table.set_column(at, name, table.column(other))
    else:
        table = table.slice(0, 0)
    codec = ("NONE", "SNAPPY", "GZIP", "ZSTD", "BROTLI", "LZ4")[rng.integers(6)]
    pq.write_table(table, file, compression=codec, data_page_version=("1.0", "2.0")[rng.integers(2)])
    return f"{kind} {name} {other} {codec}"


def _nulls(file: Path, rng: np.random.Generator) -> str:
    """Null in place of a value, of an entry of a list, or of a list in a list."""
    table = pq.read_table(file)
    name = table.column_names[rng.integers(table.num_columns)]
    values, depth = table.column(name).to_pylist(), int(rng.integers(3))
    holder, at = values, int(rng.integers(len(values)))
    for _ in range(depth):
        if isinstance(holder[at], list) and holder[at]:
            holder, at = holder[at], int(rng.integers(len(holder[at])))
        elif isinstance(holder[at], dict):
            holder = holder[at]
            at = sorted(holder)[rng.integers(len(holder))]
    holder[at] = None
    kind = table.schema.field(name).type
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values, kind)), file)
    return f"null in {name}, depth {depth}"


def _frame(file: Path, rng: np.random.Generator) -> str:
    table = pq.read_table(file)
    frames = table.column("frames").to_pylist()
    row = frames[rng.integers(len(frames))]
    at = int(rng.integers(len(row)))
    data, what = hostile(row[at]["bytes"], rng)
    row[at] = {"bytes": data, "path": None}
    if rng.integers(8) == 0:
        row[at] = {"bytes": None, "path": str(file.parent / "FIFO")}
        os.mkfifo(file.parent / "FIFO")
        what = "path of a pipe"
    column = pa.array(frames, table.schema.field("frames").type)
    pq.write_table(table.set_column(table.column_names.index("frames"), "frames", column), file)
    return f"frame {at}: {what}"


def _bomb(file: Path, rng: np.random.Generator) -> str:
    """Few bytes that unfold to many: rows, frames, numbers or text stored once and repeated."""
    table = pq.read_table(file)
    kind = ("rows", "frames", "numbers", "text", "texts", "nested", "large")[rng.integers(7)]
    many, row = int(rng.choice([1_000, 30_000, 1_000_000])), table.slice(0, 1).to_pylist()[0]
    if kind == "rows":
        table = pa.concat_tables([table.slice(0, 1)] * min(many, 30_000)).combine_chunks()
    else:
        if kind == "frames":
            row["frames"] = row["frames"][:1] * many
        elif kind == "numbers":
            for name in ("step", "reward", "success", "episode_reward"):
                row[name] = row[name][:1] * many
        elif kind == "text":
            row["task"] = "x" * (many * 100)
        elif kind == "texts":
            row |= {"sentences": ["fold"] * many, "opposite_sentences": []}
        elif kind == "nested":
            row["positions"] = [[0.0] * 6] * many
        else:
            buffer = [(b"IHDR", b"\x00\x00\x10\x00\x00\x00\x09\x00\x08\x02\x00\x00\x00")]
            row["frames"] = [{"bytes": _flat_png(buffer), "path": None}] * len(row["frames"])
        fields = [table.schema.field(name) if name in table.column_names else None for name in row]
        arrays = [_array([row[name]], field.type if field else None) for name, field in zip(row, fields, strict=True)]
        table = pa.table(dict(zip(row, arrays, strict=True)))
    pq.write_table(table, file, compression=("SNAPPY", "ZSTD", "BROTLI", "GZIP")[rng.integers(4)])
    return f"{kind} x {many}: {file.stat().st_size} bytes"


def _flat_png(header: list[tuple[bytes, bytes]]) -> bytes:
    import zlib

    from tests.mutations.targets.pictures import joined

    return joined([*header, (b"IDAT", zlib.compress(bytes((4096 * 3 + 1) * 2304), 9)), (b"IEND", b"")])


def _file(file: Path, rng: np.random.Generator) -> str:
    kind = ("pipe", "folder", "zero", "link", "dead", "name", "outside", "hidden")[rng.integers(8)]
    other = file.parents[1] / "moved.parquet"
    if kind in ("name", "hidden"):
        stem = ("x", "push-v3-expert ", "push-v3-novice", "-expert", "reach-v3-random")[rng.integers(5)]
        file.rename(file.with_name(f"{'.' * (kind == 'hidden')}{stem}.parquet"))
        return f"named {stem}"
    file.rename(other)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "outside":
        file.symlink_to(other)
    else:
        target = {"zero": "/dev/zero", "link": file.name, "dead": "nowhere"}[kind]
        file.symlink_to(target)
    return kind


def read(folder: Path) -> list[Trajectory]:
    """All rollouts."""
    return load_trajectories(folder, progress_bar=False)


def wrong(trajectories: list[Trajectory]) -> str:
    """What in a trajectory breaks the contract in the docstring of `Trajectory`."""
    for t in trajectories:
        frames, steps = len(t.frames), len(t.episode_reward)
        checks = {
            "frames": t.frames.dtype == np.uint8
            and t.frames.ndim == 4
            and t.frames.shape[3] == 3
            and t.frames.size > 0,
            "step": t.step.dtype == np.int64 and t.step.shape == (frames,),
            "order": all(a < b for a, b in zip([-1, *t.step], [*t.step, steps + 1], strict=True)),
            "reward": t.reward.dtype == np.float32 and t.reward.shape == (frames,) and np.isfinite(t.reward).all(),
            "success": t.success.dtype == bool and t.success.shape == (frames,),
            "every": t.episode_reward.dtype == np.float32 and np.isfinite(t.episode_reward).all(),
            "positions": t.positions.dtype == np.float32 and t.positions.shape == (frames, 2, 3),
            "places": not np.isinf(t.positions).any(),
            "names": all(isinstance(n, str) and n.strip() and "\0" not in n for n in (t.task, t.tier, t.camera)),
            "tier": t.tier in ALL_TIERS,
            "stride": type(t.stride) is int and t.stride >= 1 and type(t.seed) is int and type(t.varied) is bool,
            "sentences": all(_is_sentence(s) for s in (*t.sentences, *t.held_out)),
            "opposites": len(t.opposite_sentences) in (0, len(t.sentences)),
            "opposite": all(_is_sentence(s) for group in t.opposite_sentences for s in group),
            "others": all(n is None or isinstance(n, str) for n in (t.opposite, t.sibling)),
            "variants": all(k in VARIANT_KINDS and v and all(map(_is_sentence, v)) for k, v in t.variants.items()),
        }
        for name, rows in (("observation", steps + 1), ("action", steps)):
            value = getattr(t, name)
            checks[name] = value is None or (
                value.dtype == np.float32 and value.ndim == 2 and len(value) == rows and np.isfinite(value).all()
            )
        if bad := [name for name, right in checks.items() if not right]:
            return f"{t.name}: {bad}"
    return ""


def _is_sentence(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


TARGET = Target(make, mutate, read, wrong, (DatasetError,))
