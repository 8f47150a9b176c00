"""Pictures from files of unknown origin: a PNG or JPEG as a frame, within limits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import MissingExtraError

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64_000_000  # a PNG of 20 kB can hold more, and each pixel takes several bytes while it is read


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """A PNG or JPEG file of at most 64 megapixels as uint8 RGB ``[H, W, 3]``.

    A picture that a camera took lying on its side is turned upright, as its EXIF entry says.

    Raises:
        ValueError: it is no such file, it is damaged or too large, or a pixel of it is one number of 16 or 32 bits,
            which would be cut off at 255; the message is the reason alone.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError('pictures need Pillow: pip install "vlp_gym[prompt]"') from error
    limit = f"expected at most {MAX_PIXELS // 10**6} megapixels"
    try:
        if not Path(path).is_file():  # a pipe or a device would be read for ever
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
    except Exception as error:  # of a damaged file Pillow raises SyntaxError, struct.error, EOFError, ...
        raise ValueError(str(error) or type(error).__name__) from error
