"""Reads a command line: each mistake is one line, said before any work begins."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlp_gym.errors import did_you_mean

Result = TypeVar("Result")

MAX_SEED = 2**31 - 1


def later(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The function, with its signature and help, but a call returns what is to be called, after `check_values`."""

    @functools.wraps(function)
    def bound(*values: Any, **options: Any) -> Callable[[], None]:
        check_values(inspect.signature(function).bind(*values, **options).arguments)
        return functools.partial(function, *values, **options)

    return bound


def with_line(function: Callable[..., Result], line: str) -> Callable[..., Result]:
    """The function, with one more paragraph in its help, before the arguments."""
    head, heading, arguments = (inspect.getdoc(function) or "").partition("\nArgs:")
    function.__doc__ = f"{head.rstrip()}\n\n{line}\n{heading}{arguments}"
    return function


def options_of(function: Callable[..., Any]) -> list[str]:
    """The command-line options of a function, such as "--out"."""
    parameters = inspect.signature(function).parameters.values()
    return option_names(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def option_names(names: Iterable[str]) -> list[str]:
    """The command-line options for fields or parameters."""
    return [f"--{name.replace('_', '-')}" for name in names]


def listed(description: str) -> Callable[[], None]:
    """A sub-command that only provides its line of help."""

    def command() -> None: ...

    command.__doc__ = description
    return command


def check_names(arguments: Sequence[str], options: Sequence[str], command: str) -> None:
    """Raise ValueError for an option that does not exist, with the one that was meant, and for an empty argument."""
    for position, argument in enumerate(arguments):
        if not argument:
            before = arguments[position - 1] if position else command
            raise ValueError(f"{before}: expected a value, got an empty one")
        name = argument.partition("=")[0].replace("_", "-")
        known = {*options, *(option.replace("--", "--no-", 1) for option in options), "--help"}
        if name.startswith("--") and name not in known:
            hint = did_you_mean(name, options) or ";"
            raise ValueError(f"unknown option {name}{hint} see `{command} --help`")


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ValueError for what no command takes.

    Args:
        values: option -> its value.
    """
    for option, value in values.items():
        name = f"--{option.replace('_', '-')}"
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
        if option == "seed" and not 0 <= value <= MAX_SEED:
            raise ValueError(f"{name}: expected 0 to {MAX_SEED}, got {value}")
        if option == "out" and value is not None:
            _check_folder(name, value.parent if value.suffix == ".json" else value)


def _check_folder(name: str, folder: Path) -> None:
    """Raise ValueError if results could not be written there: said now, not after hours."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"{name}: expected a folder, got {folder}, and {path} is a file")
            return


def parse(read: Callable[[], Result], command: str) -> Result:
    """Call tyro; what it says of wrong usage, in a box, becomes the one line of a ValueError.

    Args:
        read: the call.
        command: whose help is named.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return read()
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(f"{_one_line(shown.getvalue())}; see `{command} --help`") from None


def _one_line(box: str) -> str:
    """The text of a box up to its advice.

    >>> _one_line("╭─ Title ─╮\\n│ It is    │\\n│ so.      │\\n│ ──────── │\\n│ For full helptext, run x │")
    'It is so'
    >>> _one_line(" Title \\n ------ \\n It is so. \\n ----- \\n For full helptext, run x")
    'It is so'
    """
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    # The title is in the border, or above a rule where the terminal is no UTF-8.
    titles = (place for place, line in enumerate(lines) if line.startswith("╭") or not line.strip("-"))
    body = lines[next(titles, -1) + 1 :]
    text = " ".join(line for line in body if line.strip("─-") and not line.startswith("╰")).replace(", )", ",)")
    return re.split(r"\s*(?:For full helptext|Argument helptext|Perhaps you meant)", text)[0].rstrip(". ")
