"""Parse a chat model's answers; `Unparsed` gives the reason, which is added when the question is asked again.

Each expression takes time linear in the answer: no two repeats that may match the same characters stand side by side.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vlp_gym.prompting.content import Schema

DESCRIPTION, PERCENTAGE = "Frame Description", "Task Completion Percentages"

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


def object_schema(properties: Schema) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties, as strict endpoints want it."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def percentages_schema(count: int) -> dict[str, Any]:
    """The schema for `parse_percentages`: no frame can be left out, and each is described before it is rated."""
    frame = object_schema({DESCRIPTION: {"type": "string"}, PERCENTAGE: {"type": "number"}})
    return object_schema({f"Frame {number}": frame for number in range(1, count + 1)})


CHOICE_SCHEMA = object_schema({"answer": {"type": "integer", "enum": [0, 1, -1]}})
"""The schema for `parse_choice`."""


class Unparsed(ValueError):
    """An answer does not have the requested form; the message says why."""


def parse_percentages(answer: str, count: int) -> list[float]:
    """Read ``Frame {i}: Frame Description: ..., Task Completion Percentages: {p}%`` for i = 1 .. count, or JSON.

    JSON is as in `percentages_schema`. Lines may be in any order, with Markdown around and text between them.

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
    if (said := _json_object(answer)) is not None:
        return _percentages_in(said, count)
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
    """Read 0, 1 or -1 from the last line that is not blank, or from JSON as in `CHOICE_SCHEMA`.

    >>> parse_choice("Image 1 is nearer to the goal.\\n**0**"), parse_choice("Answer: -1")
    (0, -1)

    Raises:
        Unparsed: that line has none or several of them.
    """
    if (said := _json_object(answer)) is not None:
        choice = said.get("answer")
        if type(choice) is not int or choice not in (0, 1, -1):
            raise Unparsed(f"its answer is {_quoted(choice)}, expected 0, 1 or -1")
        return choice
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


def _percentages_in(said: dict[str, Any], count: int) -> list[float]:
    names = [f"Frame {number}" for number in range(1, count + 1)]
    if said.keys() != set(names):
        wrong = sorted(said.keys() ^ set(names))
        raise Unparsed(f"expected Frame 1 to Frame {count} in the JSON, each once; wrong are {_quoted(wrong)}")
    found: list[float] = []
    for name in names:
        value = said[name].get(PERCENTAGE) if isinstance(said[name], dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
            raise Unparsed(f"{name} has the percentage {_quoted(value)}, expected a number from 0 to 100")
        found.append(float(value))
    return found


def _json_object(answer: str) -> dict[str, Any] | None:
    """The object of an answer that begins as one, perhaps in a fence of Markdown; None for any other text."""
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not text.startswith("{"):
        return None
    try:
        return dict(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        raise Unparsed(f"it begins as JSON, but is none ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _quoted(value: Any) -> str:
    return repr(value)[:80]
