"""A folder of videos with captions.csv, or with one sentence for all of them.

The columns of captions.csv: ``file`` and ``sentence``; and optionally ``success`` (yes or no), ``tier`` (see
`Trajectory`), ``group`` (the task's name: rows of one group describe the same task in other words), ``start_s`` and
``end_s`` (the part of the video that shows it, in seconds). Without `tier` and `success` a video shows a success.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.sources import OnBroken, SentencesMissingError, SourceOptions, give_up
from vlp_gym.data.sources.recording import make_trajectory, task_name, tier_of
from vlp_gym.data.trajectory import ALL_TIERS, Trajectory
from vlp_gym.errors import DatasetError, did_you_mean, import_extra
from vlp_gym.text import VIDEOS, normalize_sentence

CAPTIONS = "captions.csv"
COLUMNS = ("file", "sentence", "success", "tier", "group", "start_s", "end_s")
MAX_ROWS = 1_000_000
_TRUE, _FALSE = ("yes", "true", "1", "success"), ("no", "false", "0", "failure")


@dataclass(frozen=True)
class Clip:
    """One row of captions.csv, checked.

    Attributes:
        row: its line in the file, for messages; 0 where there is no such file.
        file: the video.
        sentence: what is done in it.
        task: the task's name.
        tier: see `Trajectory`.
        success: whether its end shows a success.
        start_s: where it begins in the video, seconds.
        end_s: where it ends, seconds.
    """

    row: int
    file: Path
    sentence: str
    task: str
    tier: str
    success: bool
    start_s: float = 0.0
    end_s: float = math.inf


class Videos:
    """The clips of a folder; see `Source`."""

    def __init__(self, clips: Sequence[Clip], options: SourceOptions) -> None:
        self.clips, self.options = clips, options
        self.sentences: dict[str, dict[str, None]] = {}
        for clip in clips:
            self.sentences.setdefault(clip.task, {})[clip.sentence] = None

    def tasks(self) -> list[str]:
        """See `Source`."""
        return sorted(self.sentences)

    def stream(self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None) -> Iterator[Trajectory]:
        """See `Source`."""
        for number, clip in enumerate(self.clips):
            if tasks is not None and clip.task not in tasks:
                continue
            try:
                yield self._read(number, clip)
            except DatasetError as error:
                place = f"{CAPTIONS}, line {clip.row}: " if clip.row else ""
                named = error if str(clip.file) in str(error) else DatasetError(f"{clip.file}: {error}")
                give_up(DatasetError(f"{place}{named}"), on_broken, error)

    def _read(self, number: int, clip: Clip) -> Trajectory:
        from vlp_gym.video import read_video

        frames = read_video(clip.file, start_s=clip.start_s, end_s=clip.end_s, fps=self.options.fps)
        success = np.zeros(len(frames), bool)
        success[-1] = clip.success
        return make_trajectory(
            frames, task=clip.task, tier=clip.tier, success=success, size=self.options.size, camera="video",
            seed=number, sentences=list(self.sentences[clip.task]),
        )  # fmt: skip


def open_source(folder: Path, options: SourceOptions) -> Videos:
    """The clips of a folder, checked; the videos themselves are opened one by one.

    Raises:
        DatasetError: if there are no clips, or a row is wrong; it names the line.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected a folder of videos, found {'a file' if folder.exists() else 'none'}")
    import_extra("av", "reading videos needs PyAV", "viz")
    captions = folder / CAPTIONS
    if not captions.exists():
        return Videos(_all_videos(folder, options.instruction), options)
    if options.instruction is not None:
        raise DatasetError(f"--instruction: {captions} has a sentence for each video; remove one of them")
    return Videos(_read_captions(captions), options)


def _all_videos(folder: Path, instruction: str | None) -> list[Clip]:
    if instruction is None:
        raise SentencesMissingError(
            f"{folder}: expected {CAPTIONS} with the columns file and sentence, found none; write it, or convert the "
            f'folder with one sentence: vlp-gym data convert videos:{folder} --instruction "..." --out FOLDER'
        )
    sentence = normalize_sentence(instruction)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in VIDEOS)
    if not files:
        raise DatasetError(f"{folder}: expected videos ({' '.join(VIDEOS)}), found none")
    return [Clip(0, file, sentence, task_name(sentence), "expert", True) for file in files]


def _read_captions(captions: Path) -> list[Clip]:
    clips: list[Clip] = []
    try:
        with open(captions, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or [])
            for row in reader:
                if len(clips) >= MAX_ROWS:
                    raise ValueError(f"expected at most {MAX_ROWS} rows")
                try:
                    clips.append(_clip(row, reader.line_num, captions.parent))
                except ValueError as error:  # InstructionError is one
                    raise ValueError(f"line {reader.line_num}: {error}") from error
            _check_distinct(clips)
    except (ValueError, csv.Error, OSError) as error:
        raise DatasetError(f"{captions}: {error}") from error
    if not clips:
        raise DatasetError(f"{captions}: expected a row for each video, found none")
    return clips


def _check_columns(names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"unknown column {name!r}, expected {', '.join(COLUMNS)}{did_you_mean(name, COLUMNS)}")
        if list(names).count(name) > 1:
            raise ValueError(f"the column {name} is there twice")
    if missing := [name for name in ("file", "sentence") if name not in names]:
        raise ValueError(f"expected the columns file and sentence in the first line, found no {', '.join(missing)}")


def _clip(row: dict[Any, Any], line: int, folder: Path) -> Clip:
    if None in row or None in row.values():
        raise ValueError(
            f"expected as many entries as there are columns, got {len(row) + len(row.get(None) or ()) - 1}"
        )
    cells = {name: value.strip() for name, value in row.items()}
    file = folder / cells["file"]
    if not cells["file"] or "\0" in cells["file"] or not file.is_file():
        raise ValueError(f"expected a video file in {folder}, got {cells['file']!r}")
    sentence = normalize_sentence(cells["sentence"])
    tier, told = cells.get("tier", ""), _yes_or_no(cells.get("success", ""))
    if tier and tier not in ALL_TIERS:
        raise ValueError(f"tier: expected one of {', '.join(ALL_TIERS)} or nothing, got {tier!r}")
    success = told if told is not None else tier in ("", "expert")
    start_s, end_s = _seconds(cells, "start_s", 0.0), _seconds(cells, "end_s", math.inf)
    if start_s >= end_s:
        raise ValueError(f"expected start_s before end_s, got {start_s:g} and {end_s:g}")
    task = task_name(cells.get("group", "") or sentence)
    if not task.isprintable():
        raise ValueError(f"group: expected a name in printable characters, got {task!r}")
    return Clip(line, file, sentence, task, tier or tier_of(success), success, start_s, end_s)


def _yes_or_no(cell: str) -> bool | None:
    if not cell:
        return None
    if (word := cell.lower()) not in (*_TRUE, *_FALSE):
        raise ValueError(f"success: expected yes, no or nothing, got {cell!r}")
    return word in _TRUE


def _seconds(cells: dict[str, str], name: str, default: float) -> float:
    if not (cell := cells.get(name, "")):
        return default
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected seconds from 0 on, got {cell!r}")
    return value


def _check_distinct(clips: Sequence[Clip]) -> None:
    """Each part of a video has one sentence: two would say that it is the first task, and that it is not."""
    seen: dict[Any, Clip] = {}
    for clip in clips:
        part = clip.file, clip.start_s, clip.end_s
        if (other := seen.setdefault(part, clip)) is not clip:
            raise ValueError(
                f"line {clip.row}: {clip.file.name} is already in line {other.row}; one row a video, further sentences "
                "for a task in rows of the same group"
            )
