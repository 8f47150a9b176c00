"""The exceptions of vlp_gym: one base class and one child for each kind of thing that can be wrong."""

from __future__ import annotations


class VLPError(Exception):
    """Base class of every error that vlp_gym raises on its own account."""


class FrameError(VLPError):
    """A rendered frame is not an ``(H, W, 3)`` uint8 array."""


class InstructionError(VLPError, ValueError):
    """An instruction is empty, too long for the model, or holds characters that no text has."""


class QueryError(VLPError):
    """The reward model failed or returned a value that no reward may have (NaN, inf)."""


class QueryTimeout(QueryError):
    """The reward model did not answer within the time that was allowed."""


class CheckpointError(VLPError):
    """A checkpoint folder is missing, truncated, corrupted, unsafe, or made for another architecture."""


class DatasetError(VLPError):
    """A dataset folder or a video is missing, truncated, or not what it claims to be."""


class MissingExtraError(VLPError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error of the environment, which says where and when it came; the error stays what it is."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
