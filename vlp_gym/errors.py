"""The exceptions of vlp_gym: one base class and one subclass per kind of failure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


class VLPError(Exception):
    """Base class of vlp_gym's exceptions."""


class FrameError(VLPError):
    """A rendered frame is not an ``(H, W, 3)`` uint8 array."""


class InstructionError(VLPError, ValueError):
    """An instruction is empty, too long for the model, or holds invalid characters."""


class QueryError(VLPError):
    """The reward model failed or returned an invalid value (NaN, inf)."""


class QueryTimeout(QueryError):
    """The reward model did not answer within the time limit."""


class AnswerError(QueryError):
    """A chat model answered, but refused, or in no form that can be read."""


class CheckpointError(VLPError):
    """A checkpoint is missing, truncated, corrupted, unsafe, or made for another architecture."""


class DatasetError(VLPError):
    """A dataset or a video is missing, truncated, or invalid."""


class MissingExtraError(VLPError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


def import_extra(module: str, what: str, extra: str) -> Any:
    """Import an optional package, or one of its modules.

    Args:
        module: its name, such as "PIL.Image".
        what: what needs it, the beginning of the message.
        extra: the extra of vlp_gym that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import_module(module.partition(".")[0])
        return import_module(module)
    except ImportError as error:
        raise missing_extra(error, f'{what}: pip install "vlp_gym[{extra}]"') from error


def missing_extra(error: ImportError, message: str) -> MissingExtraError:
    """The error for an optional package that could not be imported.

    Raises:
        KeyboardInterrupt: it is there, but Ctrl-C broke its import off, which an extension in C++ makes an ImportError.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
    return MissingExtraError(message)


def check_packages(packages: Mapping[str, str], what: str) -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        packages: package -> the extra of vlp_gym that installs it.
        what: what needs them, the beginning of the message.

    Raises:
        MissingExtraError: one is not installed.
    """
    missing = {name: extra for name, extra in packages.items() if not _is_installed(name)}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise MissingExtraError(f'{what} {", ".join(missing)}: pip install "vlp_gym[{extras}]"')


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # an import hook refuses it; it is a module without a specification
        return False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known ones like it, or nothing.

    >>> did_you_mean("scor", ["score", "collect"]), did_you_mean("x", ["score"])
    ('; did you mean score?', '')
    """
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def reason(error: BaseException) -> str:
    """The first line of an error's message; its type if there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an environment's error, such as the episode and step; its type stays the same."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
