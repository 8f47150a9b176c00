"""Videos of every container: bytes, header fields, and tables that promise more than there is."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.clips import CONTAINERS, clip, many_samples, write
from tests.mutations.harness import Target
from tests.mutations.mutate import bytes_of
from vlp_gym.errors import DatasetError
from vlp_gym.video import LONGEST_SIDE, MAX_FRAMES, read_video

_FIELDS = (b"mvhd", b"tkhd", b"mdhd", b"stsz", b"stts", b"stsc", b"stco", b"elst", b"avc1", b"ctts", b"strh", b"strf")
_VALUES = (0, 1, 2, 3, 16, 255, 4096, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
# A cut between two packets of these can be seen by nobody.
_ENDLESS = ("h264", "hevc", "m2v", "m4v", "ts", "m2ts", "flv", "live.mkv", "fragmented.mp4", "mpg")
_whole: dict[str, NDArray[np.uint8]] = {}


def _make(folder: Path) -> None:
    for name in CONTAINERS:
        _whole[name] = read_video(write(folder / f"clip.{name}", clip(8)))


def _mutate(folder: Path, rng: np.random.Generator) -> str:
    name = list(CONTAINERS)[rng.integers(len(CONTAINERS))]
    path = folder / f"clip.{name}"
    data = path.read_bytes()
    kind = rng.integers(4)
    if kind == 0 and b"stsz" in data:
        count = int(2 ** rng.uniform(4, 31))
        data, what = many_samples(data, count), f"{count} samples"
    elif kind < 3:
        data, what = _field(data, rng)
    else:
        data, what = bytes_of(data, rng)
    for other in folder.iterdir():
        other.unlink()
    path.write_bytes(data)
    (folder / "what").write_text(what)
    return f"{name}: {what}"


def _field(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Write a hostile number where containers keep numbers: near the start, near the end, or in a table of an mp4."""
    found = [place for place in (data.find(name) for name in _FIELDS) if place >= 0]
    start = int(rng.choice([0, max(0, len(data) - 1500), *found]))
    at = min(start + int(rng.integers(120 if start else 400)), len(data) - 1)
    width = int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(_VALUES)) % 256**width
    order = ("big", "little")[rng.integers(2)]
    data = data[:at] + value.to_bytes(width, order) + data[at + width :]  # type: ignore[arg-type]
    if data[12:16] == b"IHDR":
        data = data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]
    return data, f"{width} bytes at {at} = {value} {order}"


def _read(folder: Path) -> tuple[NDArray[np.uint8], str, str]:
    (path,) = folder.glob("clip.*")
    return read_video(path), path.name.removeprefix("clip."), (folder / "what").read_text()


def _wrong(value: tuple[NDArray[np.uint8], str, str]) -> str:
    frames, name, what = value
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        return f"{frames.dtype} {frames.shape}"
    if not 1 <= len(frames) <= MAX_FRAMES or not 1 <= max(frames.shape[1:3]) <= LONGEST_SIDE:
        return f"{frames.shape} is over the limits"
    whole = _whole[name]
    if what.startswith("append") and not np.array_equal(frames[: len(whole)], whole):
        return "other frames, although only the end was added to"
    if what.startswith("cut") and name not in _ENDLESS and not np.array_equal(frames, whole):
        return f"cut off, and {len(frames)} of {len(whole)} frames were taken for all"
    return ""


TARGET = Target(_make, _mutate, _read, _wrong, (DatasetError,))
