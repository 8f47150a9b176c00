"""Figures, what became of each part, and both as a table; the standard library alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Figure:
    """One number that was measured or counted.

    Attributes:
        name: what it is.
        value: the number (the median of several), or a short text.
        unit: such as "ms"; empty for ratios and counts.
        low: smallest of several, or None.
        high: largest of several, or None.
        at_least: the part fails below it; None for no bar.
        at_most: the part fails above it; None for no bar.
        aim: what it should reach; missing it fails nothing.
    """

    name: str
    value: float | int | str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it keeps to its bars; NaN keeps to none."""
        if isinstance(self.value, str):
            return True
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def bar(self) -> str:
        """Bars and aim in words."""
        words = {"at least": self.at_least, "at most": self.at_most, "aim:": self.aim}
        return ", ".join(f"{word} {number:g}" for word, number in words.items() if number is not None)


def of_many(name: str, values: Iterable[float], unit: str = "", **bars: float) -> Figure:
    """The median and range of several measurements."""
    numbers = [float(value) for value in values]
    return Figure(name, statistics.median(numbers), unit, min(numbers), max(numbers), **bars)


@dataclass(frozen=True)
class Outcome:
    """What became of one part.

    Attributes:
        part: its name.
        status: "failed" if it raised, ran too long, or a figure missed its bar.
        figures: all that there were, also those before an error.
        reason: why it failed or was skipped.
        seconds: how long it took.
    """

    part: str
    status: Status
    figures: tuple[Figure, ...] = ()
    reason: str = ""
    seconds: float = 0.0


def settled(part: str, figures: Sequence[Figure], error: str, seconds: float) -> Outcome:
    """The outcome of a part that was run: failed with an error, or with a figure that missed its bar."""
    missed = [f"{figure.name}: {_number(figure.value)}, {figure.bar}" for figure in figures if not figure.passed]
    reason = "; ".join([error] * bool(error) + missed)
    if not figures and not reason:
        reason = "it measured nothing"
    return Outcome(part, "failed" if reason else "passed", tuple(figures), reason, seconds)


def document(run: Mapping[str, Any], machine: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything as JSON values.

    Args:
        run: how it was run: size, device, seconds.
        machine: what it was run on.
        outcomes: one for each part.
    """
    parts = [
        {**asdict(outcome), "figures": [{**asdict(each), "passed": each.passed} for each in outcome.figures]}
        for outcome in outcomes
    ]
    return {"run": dict(run), "machine": dict(machine), "parts": parts}


def table(run: Mapping[str, Any], machine: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Markdown: the machine, one row a part, and one row a figure; arguments as `document`."""
    lines = ["# GPU check", "", *(f"- {name}: {value}" for name, value in {**machine, **run}.items() if value), ""]
    lines += ["| part | outcome | seconds | why |", "| --- | --- | ---: | --- |"]
    for outcome in outcomes:
        lines.append(_row(outcome.part, outcome.status, f"{outcome.seconds:.0f}", outcome.reason))
    lines += ["", "| part | figure | median | range | bar |", "| --- | --- | ---: | ---: | --- |"]
    for outcome in outcomes:
        for each in outcome.figures:
            value = f"{_number(each.value)} {each.unit}".strip()
            spread = "" if each.low is None or each.high is None else f"{_number(each.low)} to {_number(each.high)}"
            lines.append(_row(outcome.part, each.name, value, spread, each.bar + (" (missed)" * (not each.passed))))
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    clean = (" ".join(cell.replace("|", "/").split()) for cell in cells)
    return f"| {' | '.join(clean)} |"


def _number(value: float | int | str) -> str:
    """Whole numbers in full, others to three digits."""
    if isinstance(value, str):
        return value
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"
