"""Trajectories on disk: HF `datasets` parquet shards, one row a trajectory, frames as encoded images.

The shards stream, can be read by anything that reads parquet, and can be pushed to a hub as they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, MissingExtraError

JPEG_QUALITY = 95


MAX_FRAMES = 2_000


def encode_trajectory(trajectory: Trajectory) -> dict[str, Any]:
    """One parquet row: the frames as JPEG, the rest as lists."""
    from PIL import Image

    encoded = []
    for frame in trajectory.frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    row = {name: getattr(trajectory, name) for name in ("task", "tier", "seed", "camera", "stride", "varied")}
    series = {name: getattr(trajectory, name).tolist() for name in ("step", "reward", "success", "episode_reward")}
    return {**row, "frames": encoded, **series, "positions": trajectory.positions.reshape(-1, 6).tolist()}


def decode_trajectory(row: dict[str, Any]) -> Trajectory:
    """The inverse of `encode_trajectory`; raises DatasetError if the row is not what it claims to be."""
    from PIL import Image, UnidentifiedImageError

    name = f"{row['task']}/{row['tier']}/{row['seed']}"
    if not 0 < len(row["frames"]) <= MAX_FRAMES:
        raise DatasetError(f"{name}: expected 1 to {MAX_FRAMES} frames, got {len(row['frames'])}")
    try:
        images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in row["frames"]]
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name}: a frame cannot be decoded ({error}); collect this shard again") from error
    if len({image.shape for image in images}) != 1:
        raise DatasetError(f"{name}: frames of several sizes")
    lengths = {
        "frames": len(images),
        **{series: len(row[series]) for series in ("step", "reward", "success", "positions")},
    }
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"{name}: expected one step, reward, success and positions a frame, got {lengths}")
    return Trajectory(
        **{key: row[key] for key in ("task", "tier", "seed", "camera", "stride", "varied")},
        frames=np.stack(images),
        step=np.asarray(row["step"], np.int64),
        reward=np.asarray(row["reward"], np.float32),
        success=np.asarray(row["success"], bool),
        episode_reward=np.asarray(row["episode_reward"], np.float32),
        positions=np.asarray(row["positions"], np.float32).reshape(-1, 2, 3),
    )


def write_shard(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Write one parquet shard atomically: it is there whole or not at all."""
    datasets = _import_datasets()
    features = datasets.Features(
        {
            "task": datasets.Value("string"),
            "tier": datasets.Value("string"),
            "seed": datasets.Value("int64"),
            "camera": datasets.Value("string"),
            "stride": datasets.Value("int64"),
            "varied": datasets.Value("bool"),
            "frames": datasets.Sequence(datasets.Image()),
            "step": datasets.Sequence(datasets.Value("int64")),
            "reward": datasets.Sequence(datasets.Value("float32")),
            "success": datasets.Sequence(datasets.Value("bool")),
            "episode_reward": datasets.Sequence(datasets.Value("float32")),
            "positions": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        }
    )
    rows = [encode_trajectory(trajectory) for trajectory in trajectories]
    dataset = datasets.Dataset.from_list(rows, features=features)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        dataset.to_parquet(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def shard_path(folder: Path, task: str, tier: str) -> Path:
    """Where the shard of one task and tier lies."""
    return folder / "data" / f"{task}-{tier}.parquet"


def stream_trajectories(*folders: str | Path, tasks: Sequence[str] | None = None) -> Iterator[Trajectory]:
    """Yield trajectories one by one, folder by folder, in the order of the shards' names.

    Raises:
        DatasetError: if a folder holds no shards, none has one of the tasks, or a shard is damaged.
    """
    datasets = _import_datasets()
    files = _shard_files([Path(folder) for folder in folders], tasks)
    where = " ".join(str(folder) for folder in folders)
    try:
        rows = datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files], split="train", streaming=True
        ).cast_column("frames", datasets.Sequence(datasets.Image(decode=False)))
        with ThreadPoolExecutor(2) as pool:
            for batch in rows.iter(batch_size=32):
                columns = list(batch)
                unpacked = [dict(zip(columns, values, strict=True)) for values in zip(*batch.values(), strict=True)]
                yield from pool.map(decode_trajectory, unpacked)
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise DatasetError(f"{where}: a shard cannot be read ({error}); delete it and collect again") from error


def load_trajectories(
    *folders: str | Path, tasks: Sequence[str] | None = None, progress_bar: bool = True
) -> list[Trajectory]:
    """All trajectories in memory (about 38 kB a frame at 112 px); arguments and errors as `stream_trajectories`."""
    from tqdm import tqdm

    stream = stream_trajectories(*folders, tasks=tasks)
    where = " ".join(str(folder) for folder in folders)
    return list(tqdm(stream, desc=f"reading {where}", unit=" trajectories", disable=not progress_bar, leave=False))


def _shard_files(folders: Sequence[Path], tasks: Sequence[str] | None) -> list[Path]:
    files = []
    for folder in folders:
        own = sorted((folder / "data").glob("*.parquet"))
        if not own:
            raise DatasetError(
                f"{folder}: expected parquet shards in {folder / 'data'}, found none; "
                f"run: vlp-gym collect metaworld --out {folder}"
            )
        files += own
    if tasks is None:
        return files
    chosen = [file for file in files if any(file.name.startswith(f"{task}-") for task in tasks)]
    missing = [task for task in tasks if not any(file.name.startswith(f"{task}-") for file in chosen)]
    if missing:
        where = " ".join(str(folder) for folder in folders)
        raise DatasetError(f"{where}: no trajectories of {', '.join(missing)}; run vlp-gym collect with --tasks")
    return chosen


def _import_datasets() -> Any:
    try:
        import datasets

        datasets.disable_progress_bars()  # one bar for the whole collection is enough
    except ImportError as error:
        raise MissingExtraError('reading and writing datasets needs: pip install "vlp_gym[train]"') from error
    return datasets
