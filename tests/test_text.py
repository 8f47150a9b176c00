"""Rows 29-34 of the fault table, as far as text alone is concerned."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp_gym.errors import InstructionError
from vlp_gym.text import check_length, normalize_instruction, normalize_sentence


def whole(message: str) -> str:
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\u00a0\u3000", "\u200b", "\ufeff \u2060", "\x07"])
def test_an_instruction_without_a_visible_character_is_refused(blank: str) -> None:
    message = 'the instruction is empty; say what is to be done, such as "press the button"'
    with pytest.raises(InstructionError, match=whole(message)):
        normalize_instruction(blank)


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
