"""Rows 29-34 of the fault table, as far as text alone is concerned."""

from __future__ import annotations

import contextlib
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.errors import InstructionError
from vlp_gym.text import check_length, normalize_instruction, normalize_sentence, word_groups


def whole(message: str) -> str:
    return f"^{re.escape(message)}$"


def test_groups_of_words() -> None:
    assert word_groups("Press The red button, on the wall.") == [
        ("Press", [0]),
        ("red button,", [2, 3]),
        ("wall.", [6]),
    ]
    assert word_groups("the of") == []


EMPTY = 'the instruction is empty; say what is to be done, such as "press the button"'


def is_refused(text: str) -> bool:
    with contextlib.suppress(InstructionError):
        return not normalize_instruction(text)
    with pytest.raises(InstructionError, match=whole(EMPTY)):
        normalize_instruction(text)
    return True


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\u00a0\u3000", "\u200b", "\ufeff \u2060", "\x07", "\u0301"])
def test_an_instruction_without_a_visible_character_is_refused(blank: str) -> None:
    assert is_refused(blank)


# https://www.unicode.org/Public/16.0.0/ucd/DerivedCoreProperties.txt, Default_Ignorable_Code_Point
IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]
BLANK_BY_NAME = re.compile(r"HANGUL .*FILLER|BRAILLE PATTERN BLANK|NULL NOTEHEAD|HIEROGLYPH (FULL|HALF) BLANK")


def test_a_character_is_visible_unless_unicode_says_that_it_is_not() -> None:
    """All 1.1 million of them, each as the whole instruction."""
    never = {*IGNORABLE, *range(0xFDD0, 0xFDF0), *(plane << 16 | 0xFFFE | k for plane in range(17) for k in (0, 1))}
    for code in (*range(1, 0xD800), *range(0xE000, 0x110000)):
        character = chr(code)
        category = unicodedata.category(character)
        blank = code in never or category[0] in "ZM" or category in ("Cc", "Cf")
        blank = blank or BLANK_BY_NAME.search(unicodedata.name(character, "")) is not None
        # An older Python does not know the name of a blank that it has no name for.
        if code not in (0x13441, 0x13442):
            assert is_refused(character) == blank, hex(code)
    assert is_refused("".join(map(chr, sorted(never))) + "\U00013441 \U00013442")
    assert not is_refused("\u3164press\u2800")


@pytest.mark.parametrize("thing", [None, 3, b"press the button", ["press the button"]])
def test_only_a_string_is_an_instruction(thing: object) -> None:
    message = f"expected the instruction as a str, got {type(thing).__name__}"
    with pytest.raises(TypeError, match=whole(message)):
        normalize_instruction(thing)  # type: ignore[arg-type]


def test_nul_is_refused() -> None:
    with pytest.raises(InstructionError, match=whole("the instruction holds a NUL character at position 5; remove it")):
        normalize_instruction("press\0the button")


@pytest.mark.parametrize("code", [0xD800, 0xD83D, 0xDFFF])
def test_a_lone_surrogate_is_refused(code: int) -> None:
    message = f"the instruction holds a lone surrogate U+{code:04X} at position 6; decode the text as UTF-8 first"
    with pytest.raises(InstructionError, match=whole(message)):
        normalize_instruction("press " + chr(code))


@pytest.mark.parametrize(
    "text",
    ["press the 🔴 button", "👩🏽\u200d🔬", "اضغط على الزر", "לחץ על הכפתור", "按下按钮", "press 100 % of {it} %s {0}"],
)
def test_any_script_and_any_punctuation_pass_unchanged(text: str) -> None:
    assert normalize_instruction(text) == text


def test_nfc_and_nfd_are_one_instruction() -> None:
    composed, decomposed = "ferme la fen\u00eatre", "ferme la fene\u0302tre"
    assert composed != decomposed
    assert normalize_instruction(decomposed) == normalize_instruction(composed) == composed


def test_outer_white_space_goes_and_inner_stays() -> None:
    assert normalize_instruction("\n press  the button\u3000") == "press  the button"


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    try:
        once = normalize_instruction(text)
    except InstructionError:
        return
    assert normalize_instruction(once) == once
    assert normalize_instruction(unicodedata.normalize("NFD", text)) == once
    once.encode("utf-8")


def test_length_within_the_limit_is_kept_whole() -> None:
    assert check_length(77, 77, truncate=False) == 77
    assert check_length(3, 77, truncate=True) == 3


def test_length_over_the_limit_is_refused_unless_truncation_is_asked_for() -> None:
    message = "the instruction has 78 tokens, the model reads 77; shorten it, or pass truncate=True to drop the rest"
    with pytest.raises(InstructionError, match=whole(message)):
        check_length(78, 77, truncate=False)
    assert check_length(78, 77, truncate=True) == 77


@pytest.mark.parametrize("path", ["goal.png", "/videos/Demo 1.MP4", "demo.gif"])
def test_the_path_of_a_file_is_no_sentence(path):
    message = f"{path!r} looks like the path of a file, and this model takes a sentence"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        normalize_sentence(path)
    assert normalize_instruction(path) == path  # models that take goals read it
    assert normalize_sentence(" open the .png file viewer ") == "open the .png file viewer"
