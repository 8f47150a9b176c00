"""A model's progress for each row of a LeRobot data set, as the table that its reward-aware training reads."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def progress_parquet(episodes: Sequence[tuple[int, int]], scored: Iterable[Mapping[str, Any]], model: str) -> bytes:
    """A parquet file with the columns index, episode_index, frame_index and progress_sparse, a row for each frame.

    Args:
        episodes: number and length of every episode of the data set, in its order.
        scored: rows of `score_dataset`; their "seed" is the episode's number, and between their steps progress is
            interpolated linearly. Episodes that are not among them have no rows.
        model: name of the model, stored as reward_model_path in the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    curves = {row["seed"]: (row["step"], row["value"]) for row in scored}
    parts: list[tuple[np.ndarray, ...]] = []
    start = 0
    for number, length in episodes:
        if number in curves:
            frame = np.arange(length)
            progress = np.interp(frame, *curves[number]).astype(np.float32)
            parts.append((start + frame, np.full(length, number), frame, progress))
        start += length
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    table = pa.table(columns, ["index", "episode_index", "frame_index", "progress_sparse"])
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"reward_model_path": model}), file)
    return file.getvalue()
