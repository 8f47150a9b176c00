"""Parse a chat model's answers; `Unparsed` gives the reason, which is added when the question is asked again.

Each expression takes time linear in the answer: no two repeats that may match the same characters stand side by side.
"""

from __future__ import annotations

import re

# A line that begins with "Frame 3", after any Markdown and the number of a list ("1. Frame 1").
_FRAME = re.compile(r"^[^\w\n]*(?:\d+[.)][^\w\n]*)?frame\s*#?(\d{1,9})\b", re.IGNORECASE | re.MULTILINE)
# "Task Completion Percentages: {40}%"; without a per cent sign the number must end its line, so "10-20" fails.
# The characters allowed in between are listed, because ".5%", "<5%" and "~5%" are not 5.
_PERCENTAGE = re.compile(
    r"completion\s+percentages?[\s:=*_`\"'|%()\[\]{]*(-?\d{1,9}(?:\.\d{1,30})?)(?:\s*(?:\}\s*)?%|[^\w\n]*$)",
    re.IGNORECASE | re.MULTILINE,
)
# A second number in the rest of the line: "10%-20%", "40% to 60", "40% (or 50%)".
_ANOTHER = re.compile(r"^\W*(?:(?:to|or|and|through)\b\W*)?\d|\d\s*(?:\}\s*)?%", re.IGNORECASE)
_CHOICE = re.compile(r"(?<![\w.+-])(-1|0|1)(?![\w%]|\.\d)")


class Unparsed(ValueError):
    """An answer does not have the requested form; the message says why."""


def parse_percentages(answer: str, count: int) -> list[float]:
    """Read ``Frame {i}: Frame Description: ..., Task Completion Percentages: {p}%`` for i = 1 .. count.

    Lines may be in any order, with Markdown around and text between them.

    >>> parse_percentages("Frame 2: Frame Description: open, Task Completion Percentages: 80%\\n"
    ...                   "Frame 1: Frame Description: shut, Task Completion Percentages: 12.5%", 2)
    [12.5, 80.0]

    Args:
        answer: the model's answer.
        count: number of frames in the question.

    Returns:
        Percentages in [0, 100], ordered by frame number.

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
        percentages = list(_PERCENTAGE.finditer(section))
        if not 1 <= number <= count:
            raise Unparsed(f"frame {number} was not among the frames 1 to {count}")
        if number in found:
            raise Unparsed(f"frame {number} appears twice")
        if len(percentages) != 1:
            raise Unparsed(f"frame {number} has {len(percentages)} task completion percentages, expected 1")
        rest = section[percentages[0].end() :].partition("\n")[0]
        if _ANOTHER.search(rest):
            raise Unparsed(f"frame {number} has a range or several numbers, expected one percentage")
        if not 0.0 <= (percentage := float(percentages[0][1])) <= 100.0:
            raise Unparsed(f"frame {number} has the percentage {percentages[0][1]}, expected 0 to 100")
        found[number] = percentage
    if missing := [number for number in range(1, count + 1) if number not in found]:
        raise Unparsed(f"frames {missing} of {count} are missing")
    return [found[number] for number in range(1, count + 1)]


def parse_choice(answer: str) -> int:
    """Read 0, 1 or -1 from the last line that is not blank.

    >>> parse_choice("Image 1 is nearer to the goal.\\n**0**"), parse_choice("Answer: -1")
    (0, -1)

    Raises:
        Unparsed: that line has none or several of them.
    """
    lines = [line for line in answer.replace("\N{MINUS SIGN}", "-").splitlines() if line.strip()]
    found = _CHOICE.findall(lines[-1]) if lines else []
    if len(found) != 1:
        raise Unparsed(f"the last line has {len(found)} of the answers 0, 1 and -1, expected 1")
    return int(found[0])


def parse_text(answer: str) -> str:
    """Strip the answer; raises `Unparsed` if nothing is left."""
    if not (text := answer.strip()):
        raise Unparsed("the answer is empty")
    return text
