"""Pictures are read as a viewer shows them, or refused with the reason."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image, ImageCms
from prompting.test_pictures import chunk

import vlp_gym
from vlp_gym.frames.picture import decode_picture, read_picture

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PICTURE = Image.fromarray(NOISE)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits: colour ``[H, W, 3]``, or grey with alpha ``[H, W, 2]``."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 2: 4}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def reason(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        decode_picture(data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, NOISE),
        (2, NOISE[:, ::-1]),
        (3, NOISE[::-1, ::-1]),
        (4, NOISE[::-1]),
        (5, NOISE.swapaxes(0, 1)),
        (6, np.rot90(NOISE, -1)),
        (7, np.rot90(NOISE.swapaxes(0, 1), 2)),
        (8, np.rot90(NOISE)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(kind: str, orientation: int, shown: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    read = decode_picture(encoded(PICTURE, kind, exif=exif, **({} if kind == "PNG" else {"quality": 100})))
    assert read.shape == shown.shape
    if kind == "PNG":
        assert np.array_equal(read, shown)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_black_and_palette(mode: str) -> None:
    picture = PICTURE.convert(mode)
    assert np.array_equal(decode_picture(encoded(picture)), np.asarray(picture.convert("RGB")))


def test_colours_of_16_bits_are_scaled() -> None:
    read = decode_picture(deep_png(NOISE.astype(np.uint16) * 257))
    assert np.array_equal(read, NOISE)
    grey = decode_picture(deep_png(np.stack([NOISE[..., 0].astype(np.uint16) * 257, np.full((6, 8), 65_535)], -1)))
    assert np.array_equal(grey, np.repeat(NOISE[..., :1], 3, -1))


def test_transparency() -> None:
    message = "expected an opaque picture, got transparent pixels; save it without transparency"
    picture = PICTURE.convert("RGBA")
    assert np.array_equal(decode_picture(encoded(picture)), NOISE)
    picture.putpixel((3, 2), (9, 9, 9, 254))
    assert reason(encoded(picture)) == message
    assert reason(encoded(picture.convert("LA"))) == message
    used = PICTURE.convert("P").getpixel((0, 0))
    assert reason(encoded(PICTURE.convert("P"), transparency=used)) == message


def test_what_is_refused() -> None:
    cmyk = encoded(PICTURE.convert("CMYK"), "JPEG")
    assert reason(cmyk) == "expected colours in RGB or grey, got CMYK; save the picture as RGB"
    moving = encoded(PICTURE, save_all=True, append_images=[PICTURE.rotate(180)])
    assert reason(moving) == "expected one picture, got an animation of 2"
    other = "expected a PNG or JPEG picture, got another kind of file"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    for data in (
        b"",
        b"no picture",
        script,
        *(encoded(PICTURE, kind) for kind in ("GIF", "TIFF", "BMP", "WEBP", "EPS")),
    ):
        assert reason(data) == other
    header = struct.pack(">IIBBBBB", 1, 65_536, 1, 0, 0, 0, 0)
    tall = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2 * 65_536)))
    assert reason(tall) == "expected sides of at most 65535 pixels, got 1 x 65536"


def test_a_colour_profile_is_applied() -> None:
    """A profile with the primaries of red and green exchanged: what it calls red is green."""
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_picture(encoded(PICTURE, icc_profile=own)), NOISE)  # sRGB: to the bit
    tags = {own[at : at + 4]: at for at in range(132, 132 + 12 * int.from_bytes(own[128:132], "big"), 12)}
    swapped = bytearray(own)
    for a, b in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        swapped[tags[a] + 4 : tags[a] + 12] = own[tags[b] + 4 : tags[b] + 12]
    named = bytes(swapped).replace("sRGB".encode("utf-16-be"), "none".encode("utf-16-be")).replace(b"sRGB b", b"none b")
    read = decode_picture(encoded(PICTURE, icc_profile=named))
    assert np.abs(read.astype(int) - NOISE[..., [1, 0, 2]]).max() <= 2

    fault = reason(encoded(PICTURE, icc_profile=b"no profile"))
    assert re.fullmatch(r"its colour profile cannot be applied \(.+\); save the picture in sRGB", fault)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE))
    size = path.stat().st_size
    monkeypatch.setattr("vlp_gym.frames.picture.MAX_BYTES", size)
    assert np.array_equal(read_picture(path), NOISE)
    monkeypatch.setattr("vlp_gym.frames.picture.MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match=r"^expected at most 0 MiB, got more$"):
        read_picture(path)
    for other in ("/dev/zero", tmp_path, tmp_path / "none.png"):
        with pytest.raises(ValueError, match=r"^there is no such file$"):
            read_picture(other)


def test_pictures_are_opened_in_one_place() -> None:
    package = Path(vlp_gym.__file__).parent
    opened = [path for path in package.rglob("*.py") if re.search(r"Image\.open\(|imread\(", path.read_text())]
    assert [path.relative_to(package).as_posix() for path in opened] == ["frames/picture.py"]
