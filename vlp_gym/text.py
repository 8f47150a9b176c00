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


PARTS = frozenset({
    "a", "an", "the", "this", "that", "it", "its", "is", "of", "to", "in", "into", "on", "onto", "at", "by", "with",
    "from", "for", "and", "or", "so", "up", "down", "off", "out",
})  # fmt: skip
"""Words that only join others."""


def word_groups(instruction: str) -> list[tuple[str, list[int]]]:
    """The parts of a sentence that say something: words in a row that are not in `PARTS`, and their places.

    >>> word_groups("pull the green handle to open the drawer")
    [('pull', [0]), ('green handle', [2, 3]), ('open', [5]), ('drawer', [7])]
    """
    words = instruction.split()
    groups: list[list[int]] = [[]]
    for place, word in enumerate(words):
        if word.lower().strip(".,;:!?") in PARTS:
            groups.append([])
        else:
            groups[-1].append(place)
    return [(" ".join(words[place] for place in group), group) for group in groups if group]


VIDEOS = (
    ".3gp", ".apng", ".avi", ".flv", ".gif", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic", *VIDEOS)


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


# Letters and symbols without a picture: Hangul fillers, blank Braille, a note without a head, blank hieroglyphs.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159\U00013441\U00013442")


def _is_visible(character: str) -> bool:
    """Whether it is a letter, number, mark of punctuation or symbol that is drawn.

    White space, controls and format characters (zero width, soft hyphens, bidi controls, tags) are not, nor are
    variation selectors and accents, which only change the character before them.
    """
    category, code = unicodedata.category(character), ord(character)
    if category == "Cn":  # an emoji may be newer than this Python's tables; these are never drawn:
        ignorable = code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF
        noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        return not (ignorable or noncharacter or character in _BLANK)
    return (category[0] in "LNPS" or category == "Co") and character not in _BLANK
