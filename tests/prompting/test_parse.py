"""What chat models answer: what is read, and what is refused with its reason."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from vlp_gym.prompting import Unparsed
from vlp_gym.prompting.parse import parse_choice, parse_percentages, parse_text


@pytest.mark.parametrize(
    "answer",
    [
        "Frame 1: Frame Description: a, Task Completion Percentages: 10%\n"
        "Frame 2: Frame Description: b, Task Completion Percentages: 20.5%",
        "Sure!\n**Frame 2:** Frame Description: like Frame 1 but open\n**Task Completion Percentages:** {20.5}%\n\n"
        "- Frame 1: Frame Description: shut.\n  Task Completion Percentage: 10\nThat is 100% true.",
        "frame #1: task completion percentages: 10 % (shut)\nFRAME #2: TASK COMPLETION PERCENTAGES: 20.50%.",
        "Frame 1: Task Completion Percentages (%): `10`\nFrame 2: Task Completion Percentages = {20.5}%, step 1 done",
        "1. Frame 1: Frame Description: a, Task Completion Percentages: 10%\n"
        "2) **Frame 2**: Frame Description: b, Task Completion Percentages: 20.5%",
    ],
)
def test_percentages_are_read(answer: str) -> None:
    assert parse_percentages(answer, 2) == [10.0, 20.5]


def line(number: int, percentage: Any) -> str:
    return f"Frame {number}: Frame Description: x, Task Completion Percentages: {percentage}%\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "frames [1, 2] of 2 are missing"),
        (line(1, 5), "frames [2] of 2 are missing"),
        (line(1, 5) + line(2, 6) + line(1, 5), "frame 1 appears twice"),
        (line(1, 5) + line(2, 6) + line(3, 7), "frame 3 was not among the frames 1 to 2"),
        (line(0, 5) + line(1, 6), "frame 0 was not among the frames 1 to 2"),
        (line(1, 5) + line(2, 101), "frame 2 has the percentage 101, expected 0 to 100"),
        (line(1, -5) + line(2, 6), "frame 1 has the percentage -5, expected 0 to 100"),
        (line(1, "10-20") + line(2, 6), "frame 1 has 0 task completion percentages, expected 1"),
        (line(1, "ten") + line(2, 6), "frame 1 has 0 task completion percentages, expected 1"),
        (line(1, ".5") + line(2, 6), "frame 1 has 0 task completion percentages, expected 1"),
        (line(1, "<5") + line(2, 6), "frame 1 has 0 task completion percentages, expected 1"),
        (line(1, "~5") + line(2, 6), "frame 1 has 0 task completion percentages, expected 1"),
        (line(1, "\N{MINUS SIGN}5") + line(2, 6), "frame 1 has the percentage -5, expected 0 to 100"),
        *(
            (line(1, text) + line(2, 6), "frame 1 has a range or several numbers, expected one percentage")
            for text in ("10%-20", "40% to 60", "{40}%\N{EN DASH}{60}", "40% or so, at most 60", "40%, to 60 ")
        ),
        (
            line(1, 5) + line(2, "40% to 60 ").replace("%\n", "\n"),
            "frame 2 has a range or several numbers, expected one percentage",
        ),
        (
            line(1, 5).strip() + " Task Completion Percentages: 6%\n" + line(2, 6),
            "frame 1 has 2 task completion percentages, expected 1",
        ),
    ],
)
def test_percentages_that_do_not_fit_are_refused(answer: str, reason: str) -> None:
    with pytest.raises(Unparsed) as caught:
        parse_percentages(answer, 2)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("0", 0), ("1\n", 1), ("-1", -1), ("\N{MINUS SIGN}1", -1), ("It is 5 cm nearer.\n\n`1`.", 1), ("Reply: 0", 0)],
)
def test_a_choice_is_read(answer: str, choice: int) -> None:
    assert parse_choice(answer) == choice


@pytest.mark.parametrize(
    ("answer", "count"), [("", 0), ("2", 0), ("10", 0), ("0 or 1", 2), ("0.5", 0), ("1%", 0), ("0\nas I said", 0)]
)
def test_what_is_no_choice_is_refused(answer: str, count: int) -> None:
    with pytest.raises(Unparsed) as caught:
        parse_choice(answer)
    assert str(caught.value) == f"the last line has {count} of the answers 0, 1 and -1, expected 1"


def test_an_empty_text_is_refused() -> None:
    assert parse_text(" yes\n") == "yes"
    with pytest.raises(Unparsed, match=r"^the answer is empty$"):
        parse_text(" \n")


@pytest.mark.parametrize("parse", [lambda answer: parse_percentages(answer, 2), parse_choice])
@pytest.mark.parametrize("filler", [" ", "\n", "}", "% ", "(", "9", "-", "1. ", "to ", "Frame 1: ", "1\n", " \t{"])
@pytest.mark.parametrize("end", ["", "x", "%"])
def test_a_degenerate_answer_takes_no_time(parse: Callable[[str], object], filler: str, end: str) -> None:
    start = time.process_time()
    with contextlib.suppress(Unparsed):
        parse("Frame 1: Task Completion Percentages: 5" + filler * 20_000 + end)
    assert time.process_time() - start < 1.0
