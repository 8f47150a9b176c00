"""Goal pictures and pictures of examples: PNG and JPEG files, and files of other formats under their names."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.mutations.harness import Target
from tests.mutations.mutate import bytes_of
from vlp_gym.errors import DatasetError, InstructionError
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.prompting.shots import load_examples

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "EPS", "ICO", "PPM", "TGA", "PCX", "JPEG2000")
PIXELS = 64_000_000


def make(folder: Path) -> None:
    """Pictures of one video, of every mode and with everything that a file can carry beside its pixels."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    everything: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": profile}
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "1")):
        colour.convert("RGBA" if mode == "LA" else mode).convert(mode).save(folder / f"png-{number}.png", **everything)
    for number, mode in enumerate(("RGB", "L", "CMYK")):
        colour.convert(mode).save(folder / f"jpg-{number}.jpg", progressive=number == 0, **everything)


def encoded(kind: str, rng: np.random.Generator) -> bytes:
    """A small picture in a format of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def hostile(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damage a picture's bytes, its header or its chunks; or put another format, or a bomb, in its place."""
    kind = ("bytes", "bytes", "chunk", "chunk", "size", "segment", "format", "bomb", "text", "script")[rng.integers(10)]
    if kind == "format":
        other = FORMATS[rng.integers(len(FORMATS))]
        data = encoded(other, rng)
        return (data, other) if rng.integers(2) else bytes_of(data, rng)
    if kind == "script":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(EXECUTED) (w) file closefile showpage\n", kind
    png = data.startswith(b"\x89PNG")
    if kind == "bomb" or (kind == "text" and not png):
        sizes = (
            (8000, 8000),
            (8001, 8000),
            (30_000, 30_000),
            (2**31 - 1, 1),
            (1, 60_000_000),
            (65_536, 1),
            (65_535, 9),
        )
        width, height = sizes[rng.integers(7)]
        rows = zlib.compress(bytes(min(1 + width // 8, 10**6)) * min(height, 8000), 9)
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        return joined([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]), f"{width} x {height}"
    if not png:
        if kind in ("size", "segment", "chunk"):  # a JPEG's segments: marker, length, content
            at = data.find(
                (b"\xff\xc0", b"\xff\xc2", b"\xff\xe1", b"\xff\xe2", b"\xff\xdb", b"\xff\xc4")[rng.integers(6)]
            )
            run = int(rng.integers(1, 12))
            return data[: at + 2] + rng.bytes(run) + data[at + 2 + run :], f"segment at {at}"
        return bytes_of(data, rng)
    parts = chunks(data)
    at = int(rng.integers(len(parts)))
    name, content = parts[at]
    if kind == "size":
        numbers = [int(x) for x in rng.choice([0, 1, 7, 12, 16, 8000, 65_535, 2**20, 2**31 - 1, 2**31], 2)]
        parts[0] = b"IHDR", struct.pack(">II", *numbers) + parts[0][1][8:]
        return joined(parts), f"{numbers}"
    if kind == "text":
        packed = zlib.compress(bytes(100_000_000), 9)
        named = [(b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")][rng.integers(3)]
        parts.insert(1, (named[0], named[1] + packed))
        return joined(parts), f"{named[0].decode()} of 100 MB"
    if kind == "chunk" and rng.integers(3) == 0:
        profile = b"a\0\0" + zlib.compress(rng.bytes(200))
        names = (b"acTL", b"tRNS", b"PLTE", b"eXIf", b"iCCP")
        bodies = (struct.pack(">II", 3, 0), rng.bytes(6), rng.bytes(9), rng.bytes(20), profile)
        parts[at] = list(zip(names, bodies, strict=True))[rng.integers(5)]
        return joined(parts), f"{name!r} becomes {parts[at][0]!r}"
    content, what = bytes_of(content, rng)
    parts[at] = name, content
    return joined(parts), f"{name!r}: {what}"


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks."""
    found, at = [], 8
    while at + 12 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, with their checksums made right again."""
    packed = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def mutate(folder: Path, rng: np.random.Generator) -> str:
    """Leave one picture of the folder, and damage it."""
    files = sorted(folder.iterdir())
    file = files[rng.integers(len(files))]
    for other in files:
        if other != file:
            other.unlink()
    data, what = hostile(file.read_bytes(), rng)
    file.write_bytes(data)
    return f"{file.name}: {what}"


def read(folder: Path) -> list[Any]:
    """As a goal, and as an example; both must agree on whether it is a picture."""
    (file,) = (path for path in folder.iterdir() if path.name != "EXECUTED")
    try:
        goal = read_goal_image(str(file))
    except InstructionError:
        load_examples(folder)  # refuses it, too
        return ["an example, but no goal"]
    return [goal, load_examples(folder)[0][0][0]]


def wrong(pictures: list[Any]) -> str:
    """What is no uint8 RGB picture, or differs between goal and example."""
    if isinstance(pictures[0], str):
        return pictures[0]
    goal, example = np.asarray(pictures[0]), pictures[1]
    if (
        goal.dtype != np.uint8
        or goal.ndim != 3
        or goal.shape[2] != 3
        or not 0 < goal.shape[0] * goal.shape[1] <= PIXELS
    ):
        return f"{goal.dtype} {goal.shape}"
    return "" if np.array_equal(goal, example) else "goal and example differ"


TARGET = Target(make, mutate, read, wrong, (InstructionError, DatasetError))
