"""Read PNG and JPEG pictures of unknown origin as frames, within limits: the only place where a picture is opened."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import import_extra

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64_000_000  # a PNG of 20 kB can decode to more, at several bytes per pixel
MAX_SIDE = 65_535
MAX_BYTES = 128 * 2**20
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a PNG or JPEG file of at most 64 megapixels and 128 MiB, see `decode_picture`.

    Raises:
        ValueError: the file is missing or too large, or `decode_picture` refuses it; the message is only the reason.
        MissingExtraError: Pillow is not installed.
    """
    try:
        if not Path(path).is_file():  # reading a pipe or a device may never end
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES >> 20} MiB, got more")
    return decode_picture(data, max_pixels=MAX_PIXELS)


def decode_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG picture as uint8 RGB ``[H, W, 3]``, as a viewer shows it.

    It is rotated as its EXIF data says, and its colours are converted to sRGB if it has another colour profile.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: it is of another type, damaged or too large; it is animated or has transparent pixels; or its
            colours are CMYK, or grey of 16 or 32 bits. The message is only the reason.
        MissingExtraError: Pillow is not installed.
    """
    Image, ImageOps = (import_extra(f"PIL.{name}", "pictures need Pillow", "prompt") for name in ("Image", "ImageOps"))
    limit = f"expected at most {max_pixels / 10**6:g} megapixels"
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if max(picture.size) > MAX_SIDE:  # each row takes memory beside its pixels
            raise ValueError(f"expected sides of at most {MAX_SIDE} pixels, got {picture.width} x {picture.height}")
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"{limit}, got {picture.width} x {picture.height}")
        if picture.mode[0] in "IF":
            raise ValueError(f"expected 8 bits a colour, got grey of more (Pillow's mode {picture.mode})")
        if picture.mode not in _MODES:
            raise ValueError(f"expected colours in RGB or grey, got {picture.mode}; save the picture as RGB")
        if picture.format == "PNG" and getattr(picture, "is_animated", False):
            raise ValueError(f"expected one picture, got an animation of {picture.n_frames}")
        picture.load()
        profile = picture.info.get("icc_profile")
        picture = ImageOps.exif_transpose(picture)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if picture.getchannel("A").getextrema()[0] < 255:
                raise ValueError("expected an opaque picture, got transparent pixels; save it without transparency")
        return np.array(_in_srgb(picture, profile) if profile else picture.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{limit} ({error})") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError("expected a PNG or JPEG picture, got another kind of file") from error
    except ValueError:
        raise
    except Exception as error:  # for damaged files Pillow raises SyntaxError, struct.error, EOFError, ...
        raise ValueError(str(error) or type(error).__name__) from error


def _in_srgb(picture: Any, profile: bytes) -> Any:
    """The picture converted from its ICC profile; sRGB itself stays as it is, to the bit."""
    from PIL import ImageCms

    grey = picture.mode in ("1", "L", "LA")
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        picture = picture.convert("L" if grey and space == "GRAY" else "RGB")
        if space == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its colour profile cannot be applied ({error}); save the picture in sRGB") from error
