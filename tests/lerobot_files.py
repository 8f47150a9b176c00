"""Writes LeRobot data sets of both versions, with real encoders, as `lerobot` lays them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.clips import clip, write

CAMERA, RATE = "observation.images.top", 25
LENGTHS, TASKS = (12, 8, 10), ("open the door", "close the drawer", "open the door")


def episode(number):
    """Frames uint8 ``[F, 48, 64, 3]``, state ``[F, 3]``, action ``[F, 2]``, reward and success ``[F]``."""
    length = LENGTHS[number]
    rng = np.random.default_rng(number)
    frames = clip(sum(LENGTHS))[sum(LENGTHS[:number]) :][:length]
    success = np.arange(length) >= length - 2 if number != 2 else np.zeros(length, bool)
    state, action = rng.normal(size=(length, 3)), rng.uniform(-1, 1, (length, 2))
    return frames, state.astype(np.float32), action.astype(np.float32), rng.random(length).astype(np.float32), success


def write_dataset(folder: Path, version: str = "v3.0", *, video: bool = True) -> Path:
    """Three episodes; the last one fails."""
    (folder / "meta").mkdir(parents=True)
    features = {
        CAMERA: {"dtype": "video" if video else "image", "shape": [48, 64, 3]},
        "observation.state": {"dtype": "float32", "shape": [3]},
        "action": {"dtype": "float32", "shape": [2]},
    }
    info = {"codebase_version": version, "fps": RATE, "features": features, "total_episodes": len(LENGTHS)}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    episodes, tables, movies = [], [], []
    for number, length in enumerate(LENGTHS):
        frames, state, action, reward, success = episode(number)
        rows = {
            "episode_index": [number] * length,
            "frame_index": list(range(length)),
            "timestamp": [float(np.float32(k / RATE)) for k in range(length)],
            "observation.state": pa.array(list(state), pa.list_(pa.float32(), 3)),
            "action": pa.array(list(action), pa.list_(pa.float32(), 2)),
            "next.reward": reward,
            "next.success": success,
        }
        if not video:
            rows[CAMERA] = [{"bytes": _png(frame), "path": f"{k}.png"} for k, frame in enumerate(frames)]
        tables.append(pa.table(rows))
        movies.append(frames)
        start = sum(LENGTHS[:number])
        episodes.append(
            {
                "episode_index": number,
                "tasks": [TASKS[number]],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": 0,
                f"videos/{CAMERA}/chunk_index": 0,
                f"videos/{CAMERA}/file_index": 0,
                f"videos/{CAMERA}/from_timestamp": start / RATE,
                f"videos/{CAMERA}/to_timestamp": (start + length) / RATE,
            }
        )
    if version == "v3.0":
        _put(folder / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))
        _put(folder / "data/chunk-000/file-000.parquet", pa.concat_tables(tables))
        if video:
            path = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
            path.parent.mkdir(parents=True)
            write(path, np.concatenate(movies), "mp4")
        return folder
    lines = [json.dumps({name: row[name] for name in ("episode_index", "tasks", "length")}) for row in episodes]
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    for number, (table, frames) in enumerate(zip(tables, movies, strict=True)):
        _put(folder / f"data/chunk-000/episode_{number:06d}.parquet", table)
        if video:
            path = folder / f"videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, frames, "mp4")
    return folder


def _put(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _png(frame):
    import io

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()
