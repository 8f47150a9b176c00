"""A LeRobot data set, version 3.0: a row and a picture for each frame of a trajectory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.exports import Survey, summed
from vlp_gym.data.fields import FIELDS, FieldsWriter, own_fields
from vlp_gym.data.sources.lerobot import ACTION, REWARD, STATE, SUCCESS
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, import_extra

CAMERA = "observation.images."
CHUNK = 1_000  # files in a folder
DATA_MB, VIDEO_MB = 100, 200  # from which a new file begins
CODEC = "h264"
# Two frames from a key frame at most, and none that waits for a later one: any frame is found fast.
ENCODER = {"crf": "16", "preset": "medium", "g": "2", "bf": "0"}


@dataclass(frozen=True)
class Place:
    """Where an episode lies: number of the file, and of its first frame or row there."""

    file: int
    start: int

    def columns(self, what: str) -> dict[str, int]:
        """As meta/episodes says it."""
        return {f"{what}/chunk_index": self.file // CHUNK, f"{what}/file_index": self.file % CHUNK}


class Moments:
    """Statistics of the columns of arrays ``[N, D]``, added one by one."""

    def __init__(self) -> None:
        self.count, self._parts = 0, np.zeros(0)

    def add(self, values: NDArray[Any]) -> None:
        """Add rows."""
        rows = values.astype(np.float64).reshape(len(values), -1)
        new = np.stack([rows.min(0), -rows.max(0), rows.sum(0), (rows**2).sum(0)])
        if self.count:
            new = np.concatenate([np.minimum(self._parts[:2], new[:2]), self._parts[2:] + new[2:]])
        self._parts, self.count = new, self.count + len(rows)

    def summary(self) -> dict[str, list[float]]:
        """Minimum, maximum, mean and standard deviation of each column."""
        low, high, total, squares = self._parts
        mean = total / self.count
        spread = np.sqrt(np.maximum(squares / self.count - mean**2, 0))
        found = {"min": low, "max": -high, "mean": mean, "std": spread}
        return {name: values.tolist() for name, values in found.items()}


class Movies:
    """Writes frames into one video file after another, a context manager."""

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self._av = import_extra("av", "writing videos needs PyAV", "viz")
        self._folder, self._rate, self._file, self._frames = folder, rate, 0, 0
        self._container: Any = None
        self.pixels = Moments()

    def add(self, camera: str, frames: NDArray[np.uint8]) -> Place:
        """Write an episode's frames uint8 ``[F, H, W, 3]``, all into one file."""
        if self._container is not None and self._path(camera).stat().st_size > VIDEO_MB * 10**6:
            self._close()
            self._file, self._frames = self._file + 1, 0
        if self._container is None:
            self._open(camera, *frames.shape[1:3])
        place = Place(self._file, self._frames)
        for frame in frames:
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = self._frames, 1 / self._rate
            self._container.mux(self._stream.encode(picture))
            self._frames += 1
            self.pixels.add(frame.reshape(-1, 3) / 255)
        return place

    def _path(self, camera: str) -> Path:
        return _file(self._folder / "videos" / camera, self._file, "mp4")

    def _open(self, camera: str, height: int, width: int) -> None:
        (path := self._path(camera)).parent.mkdir(parents=True, exist_ok=True)
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = pixel_format(height, width)
        self._stream.options = ENCODER

    def _close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container = None

    def __enter__(self) -> Movies:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


def pixel_format(height: int, width: int) -> str:
    """Four pixels share a colour where the sides are even, as players expect; others cannot be stored so."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


def write(folder: Path, trajectories: Iterable[Trajectory], rate: float, name: str) -> Survey:
    """Write a data set into an empty folder; see `export`."""
    survey, places, camera = Survey(), [], ""
    with FieldsWriter(folder / "meta" / FIELDS) as fields, Movies(folder, _fraction(rate)) as movies:
        for trajectory in trajectories:
            survey.add(trajectory)
            if not camera:
                camera = CAMERA + trajectory.camera.removeprefix(CAMERA)
            trajectory.canonical  # noqa: B018  # raises if there is no sentence
            places.append(movies.add(camera, trajectory.frames))
            fields.add(trajectory)
    if places:
        _write_tables(folder, survey, places, camera, rate, movies.pixels)
    return survey


def _write_tables(folder: Path, survey: Survey, places: list[Place], camera: str, rate: float, pixels: Moments) -> None:
    """Everything but the videos, from the fields that lie there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = _features(survey, camera, rate)
    columns = {name: feature for name, feature in features.items() if feature["dtype"] != "video"}
    schema = pa.schema([(name, _arrow(feature)) for name, feature in columns.items()])
    statistics = {name: Moments() for name in columns}
    episodes: list[dict[str, Any]] = []
    sentences: dict[str, int] = {}
    index = number = 0
    writer: Any = None
    for episode, fields in enumerate(own_fields(folder / "meta" / FIELDS)):
        if writer is None:
            (path := _file(folder / "data", number, "parquet")).parent.mkdir(parents=True, exist_ok=True)
            writer = pq.ParquetWriter(path, schema)
        sentence = fields["sentences"][0]
        rows = _rows(fields, rate)
        length = len(rows["frame_index"])
        rows |= {
            "episode_index": np.full(length, episode), "index": index + np.arange(length),
            "task_index": np.full(length, sentences.setdefault(sentence, len(sentences))),
        }  # fmt: skip
        for column, moments in statistics.items():
            moments.add(rows[column])
        writer.write_table(pa.table([_column(rows[name], schema.field(name).type) for name in columns], schema))
        video = places[episode]
        episodes.append(
            {
                "episode_index": episode, "tasks": [sentence], "length": length,
                "dataset_from_index": index, "dataset_to_index": index + length,
                **Place(number, 0).columns("data"), **video.columns(f"videos/{camera}"),
                f"videos/{camera}/from_timestamp": video.start / rate,
                f"videos/{camera}/to_timestamp": (video.start + length) / rate,
                "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            }
        )  # fmt: skip
        index += length
        if path.stat().st_size > DATA_MB * 10**6:
            writer.close()
            writer, number = None, number + 1
    if writer is not None:
        writer.close()
    described = _file(folder / "meta" / "episodes", 0, "parquet")
    described.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), described)
    _write_tasks(folder / "meta" / "tasks.parquet", sentences)
    found = {name: {**moments.summary(), "count": [moments.count]} for name, moments in statistics.items()}
    found[camera] = {name: [[[v]] for v in values] for name, values in pixels.summary().items()} | {
        "count": [survey.frames]
    }
    _write_json(folder / "meta" / "stats.json", found)
    _write_json(folder / "meta" / "info.json", _info(survey, features, len(sentences), rate))


def _rows(fields: Mapping[str, Any], rate: float) -> dict[str, NDArray[Any]]:
    """An episode's columns, an entry a frame; the last one repeats what no frame follows."""
    step, success = fields["step"], fields["success"]
    frame = np.arange(len(step))
    rows: dict[str, NDArray[Any]] = {
        "timestamp": (frame / rate).astype(np.float32), "frame_index": frame,
        REWARD: summed(fields["episode_reward"], step), SUCCESS: np.append(success[1:], success[-1]),
        "next.done": frame == len(step) - 1,
    }  # fmt: skip
    if fields["observation"] is not None:
        rows[STATE] = fields["observation"][step]
    if (action := fields["action"]) is not None:
        padded = action if len(action) else np.zeros((1, action.shape[1]), np.float32)
        rows[ACTION] = padded[np.minimum(step, len(padded) - 1)]
    return rows


def _features(survey: Survey, camera: str, rate: float) -> dict[str, dict[str, Any]]:
    height, width = survey.shape
    found: dict[str, dict[str, Any]] = {
        camera: {
            "dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"],
            "info": {
                "video.height": height, "video.width": width, "video.channels": 3, "video.codec": CODEC,
                "video.pix_fmt": pixel_format(height, width), "video.fps": _plain(rate),
                "video.is_depth_map": False, "has_audio": False,
            },
        }
    }  # fmt: skip
    vectors = {STATE: survey.width(survey.states), ACTION: survey.width(survey.actions)}
    found |= {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in vectors.items() if size}
    scalars = {REWARD: "float32"} if survey.rewarded else {}
    scalars |= {SUCCESS: "bool", "next.done": "bool", "timestamp": "float32"}
    scalars |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    return found | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()}


def _arrow(feature: Mapping[str, Any]) -> Any:
    """The type of a column; LeRobot stores one number as itself."""
    import pyarrow as pa

    kind = pa.type_for_alias(feature["dtype"])
    return kind if feature["shape"] == [1] else pa.list_(kind, feature["shape"][0])


def _column(values: NDArray[Any], kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values.ravel(), kind)


def _info(survey: Survey, features: dict[str, Any], tasks: int, rate: float) -> dict[str, Any]:
    return {
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": survey.episodes,
        "total_frames": survey.frames, "total_tasks": tasks, "chunks_size": CHUNK,
        "data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": VIDEO_MB, "fps": _plain(rate),
        "splits": {"train": f"0:{survey.episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }  # fmt: skip


def _write_tasks(path: Path, sentences: Mapping[str, int]) -> None:
    pandas = import_extra("pandas", "writing a LeRobot data set needs pandas", "train")
    index = pandas.Index(list(sentences), name="task")
    pandas.DataFrame({"task_index": list(sentences.values())}, index=index).to_parquet(path)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _file(folder: Path, number: int, ending: str) -> Path:
    return folder / f"chunk-{number // CHUNK:03d}" / f"file-{number % CHUNK:03d}.{ending}"


def _fraction(rate: float) -> Fraction:
    if rate < 0.01:
        raise DatasetError(f"expected at least 0.01 frames per second for a video, got {rate:g}; see --fps")
    return Fraction(rate).limit_denominator(1000)


def _plain(rate: float) -> float:
    return int(rate) if rate == int(rate) else rate
