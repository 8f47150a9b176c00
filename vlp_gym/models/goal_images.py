"""Goals given as pictures: an instruction that is the path of a .png, .jpg or .jpeg file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlp_gym.errors import InstructionError, MissingExtraError
from vlp_gym.text import normalize_instruction

_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_goal_image(instruction: str) -> Tensor | None:
    """The picture that an instruction names, uint8 RGB ``[H, W, 3]`` on the CPU; None if it is a sentence.

    A picture that a camera took lying on its side is turned upright, as its EXIF entry says.

    Args:
        instruction: a sentence, or the path of a ``.png``, ``.jpg`` or ``.jpeg`` file; "~" is the home folder.

    Raises:
        InstructionError: it is empty; it ends like the path of a picture, but there is none or it cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    text = normalize_instruction(instruction)
    if not text.lower().endswith(_SUFFIXES):
        return None
    path = Path(text).expanduser()
    if not path.is_file():
        raise InstructionError(f"the goal picture {text!r} does not exist; give the path of a file, or a sentence")
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError('goal pictures need Pillow: pip install "vlp_gym[clip]"') from error
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InstructionError(f"the goal picture {text!r} cannot be read: {error}") from error
    return torch.from_numpy(np.array(upright))
