"""Pictures from files of unknown origin, and goals given as such: an instruction that is the path of one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.errors import InstructionError, MissingExtraError
from vlp_gym.text import normalize_instruction

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


def read_goal_image(instruction: str) -> Tensor | None:
    """The picture that an instruction names, uint8 RGB ``[H, W, 3]`` on the CPU; None if it is a sentence.

    Args:
        instruction: a sentence, or the path of a ``.png``, ``.jpg`` or ``.jpeg`` file, see `read_picture`; "~" is the
            home folder.

    Raises:
        InstructionError: it is empty; it ends like the path of a picture, but there is none or it cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    text = normalize_instruction(instruction)
    if not text.lower().endswith(SUFFIXES):
        return None
    try:
        path = Path(text).expanduser()
        exists = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long; the home folder of nobody
        raise InstructionError(f"the goal picture {text!r} cannot be read: {error}") from error
    if not exists:
        raise InstructionError(f"the goal picture {text!r} does not exist; give the path of a file, or a sentence")
    try:
        return torch.from_numpy(read_picture(path))
    except ValueError as error:
        raise InstructionError(f"the goal picture {text!r} cannot be read: {error}") from error
