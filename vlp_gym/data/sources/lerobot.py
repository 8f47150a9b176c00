"""A LeRobot data set, version 3.0 or 2.1, in a local folder or on the hub, read without `lerobot`.

Only the fixed layout of these versions is read: the path templates in meta/info.json could name any file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.fields import FIELDS, FieldsReader, restored, stored_tasks
from vlp_gym.data.sources import Numbered, OnBroken, SourceOptions, give_up
from vlp_gym.data.sources.recording import make_trajectory, task_name, tier_of
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import CheckpointError, DatasetError, InstructionError, reason
from vlp_gym.storage import read_file
from vlp_gym.text import normalize_sentence

VERSIONS = ("v3.0", "v2.1")
MAX_DOCUMENT = 64 * 2**20  # bytes of a JSON file
CHUNK = 1_000  # episodes in a folder of version 2.1
PICTURES = ("video", "image")
STATE, ACTION, REWARD, SUCCESS = "observation.state", "action", "next.reward", "next.success"


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        number: its index.
        sentence: its first task.
        rows: file of its rows.
        video: file of its camera's video; None where pictures are in the rows.
        start_s: where it begins in the video, seconds.
        length: its number of frames.
    """

    number: int
    sentence: str
    rows: Path
    video: Path | None
    start_s: float
    length: int


class LeRobot(Numbered):
    """The episodes of a data set; see `Source`."""

    def __init__(self, folder: Path, info: Mapping[str, Any], camera: str, options: SourceOptions) -> None:
        self.folder, self.info, self.camera, self.options = folder, info, camera, options
        self.rate = float(info["fps"])
        read = _episodes_v3 if info["codebase_version"] == "v3.0" else _episodes_v2
        self.episodes = read(folder, camera if info["features"][camera]["dtype"] == "video" else None)
        self._fields = folder / "meta" / FIELDS  # of a data set that we exported
        self._tasks = stored_tasks(self._fields)

    def tasks(self) -> list[str]:
        """See `Source`."""
        return sorted({self._task(episode) for episode in self.episodes})

    def lengths(self) -> dict[int, int]:
        """See `Numbered`."""
        return {episode.number: episode.length for episode in self.episodes}

    def numbered(
        self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None
    ) -> Iterator[tuple[int, Trajectory]]:
        """See `Numbered`."""
        with ExitStack() as stack:
            fields = stack.enter_context(FieldsReader(self._fields)) if self._tasks else None
            schema = _schema(self.camera, () if fields else _vectors(self.info["features"]))
            for file, episodes in groupby(self.episodes, lambda episode: episode.rows):
                wanted = {e.number: e for e in episodes if tasks is None or self._task(e) in tasks}
                for number, rows in _rows(file, schema, wanted):
                    try:
                        if isinstance(rows, ValueError):
                            raise rows
                        yield number, self._trajectory(wanted[number], rows, fields)
                    except (DatasetError, ValueError) as error:
                        give_up(DatasetError(f"{self.folder}, episode {number}: {error}"), on_broken, error)

    def _task(self, episode: Episode) -> str:
        return self._tasks.get(episode.number) or task_name(episode.sentence)

    def _trajectory(self, episode: Episode, rows: list[dict[str, Any]], fields: FieldsReader | None) -> Trajectory:
        if len(rows) != episode.length:
            raise DatasetError(f"expected {episode.length} rows in {episode.rows.name}, found {len(rows)}")
        if (numbers := [row.get("frame_index") for row in rows]) != list(range(episode.length)):
            raise DatasetError(f"expected frame_index 0 to {episode.length - 1}, got {numbers[:8]} ...")
        step = self.shown_rows(episode.length)
        if fields is not None:
            own = fields.of(episode.number, episode.length)
            return restored(own, self._frames(episode, rows, step), step, self.options.size)
        state, action, reward, reached = (_column(rows, name) for name in (STATE, ACTION, REWARD, SUCCESS))
        success = np.zeros(episode.length, bool)
        if reached is None:  # demonstrations
            success[-1] = True
        else:  # of the state after each action; the last of them has no frame
            success[1:] = reached[:-1] > 0.5
            success[-1] |= reached[-1] > 0.5
        more = {} if state is None or action is None else {"observation": state, "action": action[:-1]}
        return make_trajectory(
            self._frames(episode, rows, step), task=task_name(episode.sentence), tier=tier_of(bool(success.any())),
            sentences=[episode.sentence], success=success[step], size=self.options.size, camera=self.camera,
            seed=episode.number, step=step,
            reward=np.zeros(episode.length - 1, np.float32) if reward is None else reward[:-1], **more,
        )  # fmt: skip

    def _frames(self, episode: Episode, rows: Sequence[Mapping[str, Any]], step: np.ndarray) -> np.ndarray:
        if episode.video is None:
            return _pictures([rows[number].get(self.camera) for number in step])
        from vlp_gym.video import read_video

        end_s = episode.start_s + (episode.length - 0.5) / self.rate
        frames = read_video(episode.video, start_s=max(0.0, episode.start_s - 0.5 / self.rate), end_s=end_s)
        if len(frames) != episode.length:
            raise DatasetError(f"expected {episode.length} frames in {episode.video}, found {len(frames)}")
        return frames[step]


def open_source(folder: Path, options: SourceOptions) -> LeRobot:
    """Read the descriptions of a data set and of its episodes.

    Raises:
        DatasetError: if it is not one, of another version, damaged, or has no such camera.
    """
    if options.instruction is not None:
        raise DatasetError("--instruction: the episodes of a LeRobot data set have sentences of their own")
    folder = _fetched(folder)
    info = _document(folder / "meta" / "info.json")
    if not isinstance(info, dict) or info.get("codebase_version") not in VERSIONS:
        found = info.get("codebase_version") if isinstance(info, dict) else info
        raise DatasetError(f"{folder}: expected a LeRobot data set of version {' or '.join(VERSIONS)}, got {found!r}")
    rate, features = info.get("fps"), info.get("features")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 10_000:
        raise DatasetError(f"{folder}: fps: expected a rate, got {rate!r}")
    if not isinstance(features, dict) or not all(isinstance(value, dict) for value in features.values()):
        raise DatasetError(f"{folder}: features: expected a table of them, got {str(features)[:100]}")
    cameras = [name for name, value in features.items() if value.get("dtype") in PICTURES]
    if not cameras:
        raise DatasetError(f"{folder}: expected a camera among its features, found {', '.join(features)}")
    camera = options.camera or cameras[0]
    if camera not in cameras or "/" in camera or camera in (".", ".."):
        raise DatasetError(f"--camera: expected one of {', '.join(cameras)}, got {camera!r}")
    return LeRobot(folder, info, camera, options)


def _fetched(folder: Path) -> Path:
    """The folder, or that of a hub's data set of this name."""
    from vlp_gym.models.checkpoint import is_hub_id

    if folder.exists() or not is_hub_id(str(folder)):
        return folder
    try:
        import huggingface_hub

        parts = ["meta/**", "data/**", "videos/**"]
        return Path(huggingface_hub.snapshot_download(str(folder), repo_type="dataset", allow_patterns=parts))
    except Exception as error:  # httpx, requests, the hub's own and OSError, depending on the version and the network
        raise DatasetError(
            f"{folder}: no such folder in {Path.cwd()}, and the hub delivered no data set of this name "
            f"({reason(error)}); give the path of a folder, or connect this machine and check the name"
        ) from error


def _episodes_v3(folder: Path, video: str | None) -> list[Episode]:
    """Version 3.0: many episodes a file, listed in meta/episodes."""
    import pyarrow as pa

    from vlp_gym.data.rows import RowReader

    places = ("data", f"videos/{video}") if video else ("data",)
    numbers = ["episode_index", "length", *(f"{place}/{part}_index" for place in places for part in ("chunk", "file"))]
    fields: list[Any] = [(name, pa.int64()) for name in numbers]
    start = f"videos/{video}/from_timestamp"
    schema = pa.schema([*fields, (start, pa.float32()), ("tasks", pa.list_(pa.string()))])
    episodes = []
    files = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{folder}: expected {folder}/meta/episodes, found none; the download may be incomplete")
    with RowReader(schema) as reader:
        for file in files:
            try:
                for batch in reader.read(file):
                    row = batch.to_pylist()[0]
                    where = {place: "chunk-{:03d}/file-{:03d}".format(*_numbers(row, f"{place}/")) for place in places}
                    clip = folder / "videos" / str(video) / f"{where[places[-1]]}.mp4" if video else None
                    rows = folder / "data" / f"{where['data']}.parquet"
                    episodes.append(_episode(row, rows, clip, float(row.get(start) or 0.0)))
            except ValueError as error:  # of the reader and of a row
                raise DatasetError(f"{file}: {error}") from error
    return episodes


def _episodes_v2(folder: Path, video: str | None) -> list[Episode]:
    """Version 2.1: a file for each episode, listed in meta/episodes.jsonl."""
    path, episodes = folder / "meta" / "episodes.jsonl", []
    for line, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError(f"expected an episode, got {text[:100]!r}")
            number = row.get("episode_index")
            name = f"chunk-{int(number or 0) // CHUNK:03d}"
            clip = folder / "videos" / name / video / f"episode_{number:06d}.mp4" if video else None
            episodes.append(_episode(row, folder / "data" / name / f"episode_{number:06d}.parquet", clip, 0.0))
        except (ValueError, TypeError, RecursionError) as error:
            raise DatasetError(f"{path}, line {line}: {error}") from error
    if not episodes:
        raise DatasetError(f"{path}: expected an episode a line, found none")
    return episodes


def _numbers(row: Mapping[str, Any], place: str) -> tuple[int, int]:
    numbers = row.get(f"{place}chunk_index"), row.get(f"{place}file_index")
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"expected {place}chunk_index and {place}file_index, got {numbers}")
    return int(numbers[0] or 0), int(numbers[1] or 0)


def _episode(row: Mapping[str, Any], rows: Path, video: Path | None, start_s: float) -> Episode:
    number, length, tasks = row.get("episode_index"), row.get("length"), row.get("tasks")
    for name, value in (("episode_index", number), ("length", length)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if not isinstance(tasks, list) or not tasks:
        raise ValueError(f"episode {number}: expected tasks, its sentences, got {tasks!r}")
    if not 0 <= start_s < 10**9:
        raise ValueError(f"episode {number}: expected the time where it begins, got {start_s}")
    try:
        sentence = normalize_sentence(tasks[0])
    except (InstructionError, TypeError) as error:
        raise ValueError(f"episode {number}: {error}") from error
    assert isinstance(number, int)
    assert isinstance(length, int)
    return Episode(number, sentence, rows, video, start_s, length)


def _rows(
    file: Path, schema: Any, wanted: Mapping[int, Episode]
) -> Iterator[tuple[int, list[dict[str, Any]] | ValueError]]:
    """Each wanted episode with its rows, or with the reason why it has none; the file is read once."""
    from vlp_gym.data.rows import RowReader

    missing = dict.fromkeys(wanted)
    fault = ValueError(f"expected its rows in {file}, found none; the download may be incomplete")
    try:
        if missing and file.is_file():
            with RowReader(schema) as reader:
                rows = (batch.to_pylist()[0] for batch in reader.read(file))
                for number, own in groupby(rows, lambda row: row.get("episode_index")):
                    if number in missing:
                        del missing[number]
                        yield number, list(own)
    except ValueError as error:  # of the reader: the file cannot be read from here on
        fault = ValueError(f"{file}: {error}")
    for number in missing:
        yield number, fault


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    """A column of all rows, ``[F]`` or ``[F, D]``; None where the data set has none."""
    values = [row.get(name) for row in rows]
    if all(value is None for value in values):
        return None
    try:
        column = np.array(values, np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected numbers in every row, got {str(values[0])[:100]} ...") from error
    if name in (REWARD, SUCCESS):
        return column[:, 0] if column.ndim == 2 else column
    return column[:, None] if column.ndim == 1 else column


def _pictures(cells: Sequence[Any]) -> np.ndarray:
    from vlp_gym.frames.picture import decode_picture

    frames = []
    for number, cell in enumerate(cells):
        if not isinstance(cell, dict) or not cell.get("bytes"):  # a path beside the bytes is never opened
            raise ValueError(f"picture {number}: expected its bytes, found none")
        frames.append(decode_picture(cell["bytes"], max_pixels=4096 * 2304))
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("expected pictures of one size, found several")
    return np.stack(frames)


def _vectors(features: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, bool], ...]:
    """State and action, and whether each is stored as a list: LeRobot stores one number as itself."""
    return tuple((name, features.get(name, {}).get("shape") not in ([1], 1)) for name in (STATE, ACTION))


@lru_cache(8)
def _schema(camera: str, vectors: tuple[tuple[str, bool], ...]) -> Any:
    """The columns to read; without `vectors`, only the pictures."""
    import pyarrow as pa

    number = pa.float32()
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"episode_index": pa.int64(), "frame_index": pa.int64(), camera: picture}
    if vectors:
        columns |= {name: pa.list_(number) if several else number for name, several in vectors}
        columns |= {REWARD: number, SUCCESS: pa.bool_()}
    return pa.schema(columns.items())


def _document(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: no JSON document ({error})") from error


def _text(path: Path) -> str:
    if not path.is_file():
        raise DatasetError(f"{path}: expected a file of a LeRobot data set, found none")
    try:
        return read_file(path, MAX_DOCUMENT).decode()
    except (CheckpointError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
