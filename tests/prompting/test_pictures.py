"""Pictures of unknown origin, read as a goal and as an example by the same function."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp_gym.errors import DatasetError, InstructionError, MissingExtraError
from vlp_gym.frames.picture import read_picture
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.prompting.shots import load_examples


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, width: int, height: int, *, broken: bool = False) -> Path:
    """A black picture of one bit a pixel, of which even a large one is a small file."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * height, 9)
    data = chunk(b"\xd8\x9b\xb5S", rows) if broken else chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"IDAT", b"") if broken else b"") + data)
    return path


def deep(path: Path) -> Path:
    """Grey of 16 bits, which Pillow would cut off at 255."""
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(path)
    return path


def gif(path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(path, "GIF")
    return path


REFUSED: list[tuple[Callable[[Path], Path], str]] = [
    (lambda path: png(path, 8001, 8000), r"expected at most 64 megapixels, got 8001 x 8000"),
    # From here on Pillow warns, and then refuses by itself.
    (lambda path: png(path, 13_300, 13_300), r"expected at most 64 megapixels.+"),
    (lambda path: png(path, 20_000, 20_000), r"expected at most 64 megapixels \(Image size \(400000000 pixels\).+"),
    (deep, r"expected 8 bits a colour, got grey of more \(Pillow's mode I;16\)"),
    (gif, r"expected a PNG or JPEG picture, got another kind of file"),
    (lambda path: png(path, 8, 8, broken=True), r"broken PNG file .+"),  # a SyntaxError of Pillow's
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_what_is_no_good_picture_is_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    path = make(tmp_path / "open-0.png")
    with pytest.raises(InstructionError) as goal:
        read_goal_image(str(path))
    assert re.fullmatch(f"the goal picture {re.escape(repr(str(path)))} cannot be read: {reason}", str(goal.value))
    with pytest.raises(DatasetError) as example:
        load_examples(tmp_path)
    prefix = f"{re.escape(str(tmp_path))}: the pictures of 'open' are no example"
    assert re.fullmatch(rf"{prefix} \({reason}\)", str(example.value))


def test_a_picture_of_64_megapixels_is_not_refused_for_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp_gym.frames.picture.MAX_PIXELS", 12)
    read = read_picture(png(tmp_path / "a.png", 4, 3))
    assert (read.shape, read.dtype, read.max()) == ((3, 4, 3), np.uint8, 0)
    with pytest.raises(ValueError, match=r"got 13 x 1$"):
        read_picture(png(tmp_path / "b.png", 13, 1))


def test_damage_of_any_kind_is_a_value_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "a.png"
    refusals = 0
    for suffix in (".png", ".jpg"):
        Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"whole{suffix}")
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for number in range(150):
            data = bytearray(whole)
            for _ in range(generator.integers(1, 6)):
                data[generator.integers(2, len(data) if number % 2 else 60)] = generator.integers(256)
            path.write_bytes(data)
            try:
                assert read_picture(path).shape[2] == 3
            except ValueError:
                refusals += 1
    assert refusals > 50


def test_paths_that_name_no_file(tmp_path: Path) -> None:
    for text in ("~nosuchuser/goal.png", "x" * 300 + ".png"):
        with pytest.raises(InstructionError) as caught:
            read_goal_image(text)
        assert str(caught.value).startswith(f"the goal picture {text!r} cannot be read: ")
    folder = tmp_path / "open-0.png"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"^there is no such file$"):
        read_picture(folder)
    with pytest.raises(DatasetError) as refused:
        load_examples(tmp_path)
    assert str(refused.value) == f"{tmp_path}: the pictures of 'open' are no example (there is no such file)"
    with pytest.raises(DatasetError):
        load_examples("x" * 300)


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "open-0.png", 2, 2)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for read in (lambda: read_goal_image(str(path)), lambda: load_examples(tmp_path)):
        with pytest.raises(MissingExtraError) as caught:
            read()
        assert str(caught.value) == 'pictures need Pillow: pip install "vlp_gym[prompt]"'
