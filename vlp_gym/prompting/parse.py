"""Answers in words become numbers, or are refused with a reason that the model can be told."""

from __future__ import annotations

import re

# A line that begins with "Frame 3", whatever Markdown stands before it.
_FRAME = re.compile(r"^[^\w\n]*frame\s*#?(\d+)\b", re.IGNORECASE | re.MULTILINE)
# "Task Completion Percentages: {40}%"; without the per cent sign the number must end its line, so "10-20" is none.
# What may stand between is listed, because ".5%", "<5%" and "~5%" are not 5.
_PERCENTAGE = re.compile(
    r"completion\s+percentages?[\s:=*_`\"'|%()\[\]{]*(-?\d+(?:\.\d+)?)\s*\}?\s*(?:%|\W*$)", re.IGNORECASE | re.MULTILINE
)
# In the rest of its line, another: "10%-20%", "40% to 60", "40% (or 50%)".
_ANOTHER = re.compile(r"^\W*(?:(?:to|or|and|through)\b\W*)?\d|\d\s*\}?\s*%", re.IGNORECASE)
_CHOICE = re.compile(r"(?<![\w.+-])(-1|0|1)(?![\w%]|\.\d)")


class Unparsed(ValueError):
    """An answer is not of the form that was asked for; the message says why."""


def parse_percentages(answer: str, count: int) -> list[float]:
    """Read ``Frame {i}: Frame Description: ..., Task Completion Percentages: {p}%`` for i = 1 .. count.

    Lines may come in any order, with Markdown around them and text between them.

    >>> parse_percentages("Frame 2: Frame Description: open, Task Completion Percentages: 80%\\n"
    ...                   "Frame 1: Frame Description: shut, Task Completion Percentages: 12.5%", 2)
    [12.5, 80.0]

    Args:
        answer: what the model said.
        count: how many frames it was asked about.

    Returns:
        Percentages in [0, 100], in the order of the frames' numbers.

    Raises:
        Unparsed: a frame is missing, appears twice or was never shown, or its percentage is missing, ambiguous or
            outside [0, 100].
    """
    starts = list(_FRAME.finditer(answer))
    ends = [*(match.start() for match in starts), len(answer)][1:]
    found: dict[int, float] = {}
    for match, end in zip(starts, ends, strict=True):
        number = int(match[1])
        section = answer[match.end() : end].replace("\N{MINUS SIGN}", "-")
        said = list(_PERCENTAGE.finditer(section))
        if not 1 <= number <= count:
            raise Unparsed(f"frame {number} was not among the frames 1 to {count}")
        if number in found:
            raise Unparsed(f"frame {number} appears twice")
        if len(said) != 1:
            raise Unparsed(f"frame {number} has {len(said)} task completion percentages, expected 1")
        rest = section[said[0].end() :].partition("\n")[0]
        if _ANOTHER.search(rest):
            raise Unparsed(f"frame {number} has a range or several numbers, expected one percentage")
        if not 0.0 <= (percentage := float(said[0][1])) <= 100.0:
            raise Unparsed(f"frame {number} has the percentage {said[0][1]}, expected 0 to 100")
        found[number] = percentage
    if missing := [number for number in range(1, count + 1) if number not in found]:
        raise Unparsed(f"frames {missing} of {count} are missing")
    return [found[number] for number in range(1, count + 1)]


def parse_choice(answer: str) -> int:
    """Read 0, 1 or -1 from the last line that is not blank.

    >>> parse_choice("Image 1 is nearer to the goal.\\n**0**"), parse_choice("Answer: -1")
    (0, -1)

    Raises:
        Unparsed: that line has none of them, or several.
    """
    lines = [line for line in answer.replace("\N{MINUS SIGN}", "-").splitlines() if line.strip()]
    found = _CHOICE.findall(lines[-1]) if lines else []
    if len(found) != 1:
        raise Unparsed(f"the last line has {len(found)} of the answers 0, 1 and -1, expected 1")
    return int(found[0])


def parse_text(answer: str) -> str:
    """The answer without outer white space; `Unparsed` if nothing is left."""
    if not (text := answer.strip()):
        raise Unparsed("the answer is empty")
    return text
