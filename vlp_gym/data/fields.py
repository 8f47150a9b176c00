"""All of a trajectory but its frames, in a parquet file within an exported data set.

Other formats have no place for tiers, further sentences, positions or the actions between two frames: `FIELDS` keeps
them, a row an episode with the columns of our shards. Other readers overlook it; ours prefers it to what the format
itself says. Who changes the data set otherwise deletes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.check import check_size
from vlp_gym.data.shards import decode_fields, encode_fields, fields_schema
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError

FIELDS = "vlp_gym.parquet"
EPISODE = "episode_index"
_ROWS = 16  # in memory at a time


class FieldsWriter:
    """Writes the fields of episodes to a new file, a context manager."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema([(EPISODE, pa.int64()), *fields_schema()])
        self._file, self.count = pq.ParquetWriter(path, self._schema), 0
        self._rows: list[dict[str, Any]] = []

    def add(self, trajectory: Trajectory) -> None:
        """Write the next episode's row."""
        self._rows.append({EPISODE: self.count, **encode_fields(trajectory)})
        self.count += 1
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def __enter__(self) -> FieldsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._file.close()


class FieldsReader:
    """Reads the fields of some episodes, in the order of their numbers; a context manager.

    Args:
        path: of a file of unknown origin.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        from vlp_gym.data.rows import RowReader

        self.path = path
        self._reader = RowReader(pa.schema([(EPISODE, pa.int64()), *fields_schema()]))
        self._rows = self._reader.read(path)

    def of(self, number: int, frames: int) -> dict[str, Any]:
        """The checked fields of an episode with so many frames, see `decode_fields`.

        Raises:
            DatasetError: it has none, others than its number of frames needs, or the file is damaged.
        """
        try:
            for row in self._rows:
                if row.column(EPISODE)[0].as_py() == number:
                    break
            else:
                raise ValueError("expected a row of this episode, found none")
            fields = decode_fields(row)
            if len(fields["step"]) != frames:
                raise ValueError(f"expected fields of {frames} frames, found {len(fields['step'])}")
        except (ValueError, KeyError, DatasetError) as error:
            hint = "; if the data set was changed, delete this file"
            raise DatasetError(f"{self.path}: {error}{hint}") from error
        return fields

    def __enter__(self) -> FieldsReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__()


def stored_tasks(path: Path) -> dict[int, str]:
    """Number -> task of each episode of a file of unknown origin; none if there is no such file.

    Raises:
        DatasetError: it is damaged.
    """
    import pyarrow as pa

    from vlp_gym.data.rows import RowReader

    if not path.is_file():
        return {}
    try:
        with RowReader(pa.schema([(EPISODE, pa.int64()), ("task", pa.string())])) as reader:
            rows = [row.to_pylist()[0] for row in reader.read(path)]
        found = {row[EPISODE]: row["task"] for row in rows}
        if not all(isinstance(number, int) and isinstance(task, str) for number, task in found.items()):
            raise ValueError("expected a number and a task in each row, found null")
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{path}: {error}; if the data set was changed, delete this file") from error
    return found


def own_fields(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a `FieldsWriter` of this process has just written, episode by episode."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for row in file.iter_batches(1):
            yield decode_fields(row)


def restored(fields: dict[str, Any], frames: NDArray[np.uint8], kept: NDArray[np.int64], size: int) -> Trajectory:
    """The trajectory of an episode.

    Args:
        fields: of all its frames.
        frames: those that are shown, uint8 ``[K, H, W, 3]``.
        kept: their numbers, rising, int64 ``[K]``.
        size: side of the square frames, pixels.
    """
    from vlp_gym.frames.resize import squares

    check_size(fields, len(kept), size, size)
    every = len(kept) == len(fields["step"])
    shown: dict[str, Any] = {name: fields[name][kept] for name in ("step", "reward", "success", "positions")}
    if not every:
        shown["stride"] = max(1, int(np.median(np.diff(shown["step"]))))
    return Trajectory(**{**fields, **shown, "frames": squares(frames, size)})
