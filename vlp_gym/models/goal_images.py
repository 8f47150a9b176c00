"""Goal pictures: instructions that are the path of a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.frames.picture import SUFFIXES, read_picture
from vlp_gym.text import normalize_instruction


def read_goal_image(instruction: str) -> Tensor | None:
    """Read the picture that an instruction names, uint8 RGB ``[H, W, 3]`` on the CPU; None if it is a sentence.

    A path ends in ``.png``, ``.jpg`` or ``.jpeg``, see `read_picture`; "~" is the home folder.

    Raises:
        InstructionError: it is empty, or ends like the path of a picture that is missing or cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    text = normalize_instruction(instruction)
    if not text.lower().endswith(SUFFIXES):
        return None
    try:
        path = Path(text).expanduser()
        exists = path.is_file()
    except (OSError, RuntimeError) as error:  # the name is too long, or "~user" is unknown
        raise InstructionError(f"the goal picture {text!r} cannot be read: {error}") from error
    if not exists:
        raise InstructionError(f"the goal picture {text!r} does not exist; give the path of a file, or a sentence")
    try:
        return torch.from_numpy(read_picture(path))
    except ValueError as error:
        raise InstructionError(f"the goal picture {text!r} cannot be read: {error}") from error
