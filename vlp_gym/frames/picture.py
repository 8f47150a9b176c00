"""Read PNG and JPEG files of unknown origin as frames, within limits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import import_extra

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64_000_000  # a PNG of 20 kB can decode to more, at several bytes per pixel


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a PNG or JPEG file of at most 64 megapixels as uint8 RGB ``[H, W, 3]``, rotated as its EXIF data says.

    Raises:
        ValueError: the file is missing, of another type, damaged or too large, or has grey values of 16 or 32 bits,
            which would be clipped at 255; the message is only the reason.
        MissingExtraError: Pillow is not installed.
    """
    Image, ImageOps = (import_extra(f"PIL.{name}", "pictures need Pillow", "prompt") for name in ("Image", "ImageOps"))
    limit = f"expected at most {MAX_PIXELS // 10**6} megapixels"
    try:
        if not Path(path).is_file():  # reading a pipe or a device may never end
            raise ValueError("there is no such file")
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{limit}, got {picture.width} x {picture.height}")
            if picture.mode[0] in "IF":
                raise ValueError(f"expected 8 bits a colour, got grey of more (Pillow's mode {picture.mode})")
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{limit} ({error})") from error
    except ValueError:
        raise
    except Exception as error:  # for damaged files Pillow raises SyntaxError, struct.error, EOFError, ...
        raise ValueError(str(error) or type(error).__name__) from error
