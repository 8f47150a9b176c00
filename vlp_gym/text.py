"""Checks of an instruction before a model encodes it."""

from __future__ import annotations

import unicodedata

from vlp_gym.errors import InstructionError


def normalize_instruction(instruction: str) -> str:
    """Check an instruction, strip it and bring it to Unicode normal form C.

    Any script, emoji and right-to-left text is valid; ``%`` and ``{}`` are plain text.

    >>> normalize_instruction("  press the button ")
    'press the button'

    Args:
        instruction: one sentence.

    Raises:
        TypeError: it is not a string.
        InstructionError: it has no visible character, or a NUL character or lone surrogate.
    """
    if not isinstance(instruction, str):
        raise TypeError(f"expected the instruction as a str, got {type(instruction).__name__}")
    for position, character in enumerate(instruction):
        if character == "\0":
            raise InstructionError(f"the instruction holds a NUL character at position {position}; remove it")
        if "\ud800" <= character <= "\udfff":
            raise InstructionError(
                f"the instruction holds a lone surrogate U+{ord(character):04X} at position {position}; "
                "decode the text as UTF-8 first"
            )
    text = unicodedata.normalize("NFC", instruction).strip()
    if not any(map(_is_visible, text)):
        raise InstructionError('the instruction is empty; say what is to be done, such as "press the button"')
    return text


FILES = (".png", ".jpg", ".jpeg", ".gif", ".mp4", ".avi", ".mkv", ".mov", ".webm")


def normalize_sentence(instruction: str) -> str:
    """`normalize_instruction` for a model that takes sentences only.

    Raises:
        InstructionError: also for the path of a picture or video, which would be read as a sentence.
    """
    text = normalize_instruction(instruction)
    if text.lower().endswith(FILES):
        raise InstructionError(f"{text!r} looks like the path of a file, and this model takes a sentence")
    return text


def check_length(tokens: int, limit: int, *, truncate: bool) -> int:
    """Check an instruction's number of tokens and return how many to keep.

    >>> check_length(90, 77, truncate=True)
    77

    Args:
        tokens: number of tokens, counted by the model's tokenizer.
        limit: the model's token limit.
        truncate: drop tokens over the limit instead of raising.

    Raises:
        InstructionError: it is over the limit and ``truncate`` is False.
    """
    if tokens > limit and not truncate:
        raise InstructionError(
            f"the instruction has {tokens} tokens, the model reads {limit}; "
            "shorten it, or pass truncate=True to drop the rest"
        )
    return min(tokens, limit)


def _is_visible(character: str) -> bool:
    # str.strip keeps zero-width characters (category Cf), so a blank instruction could pass as text.
    # Cn and Co count as visible: an emoji newer than this Python's Unicode tables is unassigned.
    category = unicodedata.category(character)
    return category not in ("Cc", "Cf") and not category.startswith("Z")
