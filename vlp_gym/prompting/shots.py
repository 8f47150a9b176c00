"""In-context examples: videos with known progress of every frame."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import DatasetError
from vlp_gym.frames.picture import MAX_PIXELS, SUFFIXES, read_picture

Example: TypeAlias = "tuple[NDArray[np.uint8], Sequence[float]]"
"""Frames of one video, uint8 ``[T, H, W, 3]``, and the task completion of each, T percentages in [0, 100]."""

_NAME = re.compile(r"(.+)-(\d+(?:\.\d+)?)")


def load_examples(folder: str | os.PathLike[str]) -> list[Example]:
    """Read pictures named ``VIDEO-PERCENTAGE.png`` (or .jpg), such as ``drawer-0.png`` and ``drawer-62.5.png``.

    Args:
        folder: pictures of one video have one size, see `vlp_gym.frames.picture.read_picture`; other files are ignored.

    Returns:
        One example per video, sorted by name, with frames sorted by percentage.

    Raises:
        DatasetError: the folder has no such picture, one cannot be read, or sizes or percentages do not fit.
        MissingExtraError: Pillow is not installed.
    """
    videos: dict[str, list[tuple[float, Path]]] = {}
    try:
        paths = sorted(Path(folder).glob("*"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder}: the folder cannot be read ({error})") from error
    for path in paths:
        match = _NAME.fullmatch(path.stem)
        if match and path.suffix.lower() in SUFFIXES:
            videos.setdefault(match[1], []).append((float(match[2]), path))
    if not videos:
        raise DatasetError(f"{folder}: expected pictures such as drawer-0.png and drawer-62.5.png, found none")
    examples: list[Example] = []
    pixels = 0
    for name, rows in videos.items():
        rows.sort()
        try:
            frames = []
            for _, path in rows:
                frames.append(read_picture(path))
                pixels += frames[-1].size // 3
                if pixels > MAX_PIXELS:
                    raise ValueError(f"expected at most {MAX_PIXELS // 10**6} megapixels in all pictures of the folder")
            examples.append((np.stack(frames), [percentage for percentage, _ in rows]))
            check_example(*examples[-1])
        except ValueError as error:
            raise DatasetError(f"{folder}: the pictures of {name!r} are no example ({error})") from error
    return examples


def check_example(frames: NDArray[np.uint8], percentages: Sequence[float]) -> None:
    """Raise ValueError unless these are frames with one percentage in [0, 100] each."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"expected uint8 frames [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if len(frames) != len(percentages):
        raise ValueError(f"expected one percentage a frame, got {len(percentages)} of {len(frames)} frames")
    if outside := [p for p in percentages if not 0 <= p <= 100]:
        raise ValueError(f"expected percentages in [0, 100], got {outside}")
