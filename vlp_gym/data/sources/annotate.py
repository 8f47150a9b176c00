"""A model's progress for each row of other people's data sets: LeRobot's as a table, Minari's as new rewards."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.fields import FIELDS, FieldsReader, FieldsWriter
from vlp_gym.data.sources import Numbered
from vlp_gym.data.sources.minari import MAIN, Minari, dataset_id
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, import_extra
from vlp_gym.storage import staged_folder

Curves = Mapping[int, tuple[NDArray[np.int64], NDArray[np.float64]]]
"""Number of an episode -> rows of it that have a score, and the scores; between them it is interpolated linearly."""


def curves(
    source: Numbered, steps: Iterable[tuple[int, NDArray[np.int64]]], scored: Iterable[Mapping[str, Any]]
) -> Curves:
    """Where the scores of trajectories are in their data set.

    Args:
        source: that they are from.
        steps: of each, the number of its episode and its `step`.
        scored: their rows of `score_dataset`, in the same order; refused ones are left out.
    """
    lengths, found = source.lengths(), {}
    for (number, step), row in zip(steps, scored, strict=True):
        if not row["value"]:
            continue
        shown = source.shown_rows(lengths[number])
        found[number] = shown[np.searchsorted(step, row["step"])], np.array(row["value"])
    return found


def progress_parquet(lengths: Mapping[int, int], scores: Curves, model: str) -> bytes:
    """A parquet file with the columns index, episode_index, frame_index and progress_sparse, a row for each frame.

    Args:
        lengths: number -> rows of every episode of the data set, in its order.
        scores: of episodes; others have no rows.
        model: name of the model, stored as reward_model_path in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[tuple[np.ndarray, ...]] = []
    start = 0
    for number, length in lengths.items():
        if number in scores:
            frame = np.arange(length)
            progress = np.interp(frame, *scores[number]).astype(np.float32)
            parts.append((start + frame, np.full(length, number), frame, progress))
        start += length
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    table = pa.table(columns, ["index", "episode_index", "frame_index", "progress_sparse"])
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"reward_model_path": model}), file)
    return file.getvalue()


def rewarded_id(source: Minari, model: str) -> str:
    """Name of a copy with the model's rewards."""
    return dataset_id(f"{source.data.spec.dataset_name}-{Path(model).name}")


def write_rewards(source: Minari, scores: Curves, model: str, out: Path) -> None:
    """Copy a Minari data set with other rewards: a model's progress after each step.

    Args:
        source: a data set in HDF5; it stays as it is.
        scores: of every episode.
        model: name of the model, stored as "reward_model" in the metadata.
        out: the new data set's folder, new or empty; its name becomes the data set's.

    Raises:
        DatasetError: the data set is stored otherwise, an episode has no scores, or the folder cannot be written.
    """
    h5py = import_extra("h5py", "writing Minari data sets needs h5py", "minari")
    lengths = source.lengths()
    if missing := lengths.keys() - scores.keys():
        raise DatasetError(f"{source.name}: expected scores of every episode, found none of {min(missing)}")
    check_rewards_fit(source)
    with staged_folder(out) as folder:
        (data := folder / "data").mkdir()
        shutil.copyfile(source.folder / MAIN, data / MAIN)
        with h5py.File(data / MAIN, "r+") as file:
            for number, length in lengths.items():
                name = f"episode_{number}"
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):  # another one would change other files
                    raise DatasetError(f"{source.folder / MAIN}: expected a group {name}, found a link or none")
                del file[name]["rewards"]
                progress = np.interp(np.arange(1, length), *scores[number]).astype(np.float32)
                file[name].create_dataset("rewards", data=progress, chunks=True, maxshape=(None,))
        if (source.folder / FIELDS).is_file():
            _copy_fields(source.folder / FIELDS, data / FIELDS, lengths, scores)
        about = json.loads((source.folder / "metadata.json").read_text())
        about |= {"dataset_id": dataset_id(out.resolve().name), "reward_model": model}
        (data / "metadata.json").write_text(json.dumps(about))


def check_rewards_fit(source: Minari) -> None:
    """Raise DatasetError if `write_rewards` does not take a data set."""
    if (kind := source.data.storage.FORMAT) != "hdf5":
        raise DatasetError(f"{source.name}: new rewards are written into data sets in HDF5 only, this one is in {kind}")


def _copy_fields(path: Path, copy: Path, lengths: Mapping[int, int], scores: Curves) -> None:
    """With the same rewards, also of the environment's steps between two frames."""
    none = np.zeros((0, 1, 1, 3), np.uint8)
    with FieldsReader(path) as reader, FieldsWriter(copy) as writer:
        for number, length in lengths.items():
            fields = reader.of(number, length)
            rows, values = scores[number]
            steps = np.arange(1, len(fields["episode_reward"]) + 1)
            every = np.interp(steps, fields["step"][rows], values).astype(np.float32)
            reward = np.append(np.float32(0), every)[fields["step"]]
            writer.add(Trajectory(**{**fields, "frames": none, "episode_reward": every, "reward": reward}))
