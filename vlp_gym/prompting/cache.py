"""A cache of answers on disk, so that no question is paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlp_gym.errors import CheckpointError
from vlp_gym.prompting.content import Content, identity
from vlp_gym.schema import Document
from vlp_gym.storage import read_file, write_atomic

DEFAULT = "default"
MAX_BYTES = 4 << 20  # an answer has at most 100,000 characters, of 12 bytes each in JSON


class _Entry(Document):
    model: str
    key: str
    answer: str
    sha256: str


def default_folder() -> Path:
    """``prompts`` in the folder of the environment variable VLP_GYM_CACHE, else in ``~/.cache/vlp_gym``."""
    return Path(os.environ.get("VLP_GYM_CACHE") or "~/.cache/vlp_gym").expanduser() / "prompts"


def question_key(model: str, parameters: Mapping[str, Any], content: Content) -> str:
    """SHA-256 of a question: the model, the parameters that affect its answer, texts and pixels.

    The endpoint's address is left out: the same model may run anywhere.
    """
    question = {"model": model, "parameters": dict(parameters), "content": identity(content)}
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


class PromptCache:
    """One small JSON file per answer. Pictures, API keys and addresses are never written.

    Args:
        folder: its folder; "default" means `default_folder()`, None disables the cache.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = DEFAULT) -> None:
        self.folder = None if folder is None else default_folder() if folder == DEFAULT else Path(folder).expanduser()
        self._warned = False

    def get(self, key: str) -> str | None:
        """The cached answer, or None if there is none or its file is damaged."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            entry = _Entry.parse(json.loads(read_file(path, MAX_BYTES)), path)
        except (CheckpointError, ValueError, RecursionError):
            return None
        return entry.answer if entry.key == key and entry.sha256 == _digest(entry.answer) else None

    def put(self, key: str, answer: str, model: str) -> None:
        """Write an answer; a folder that cannot be written gives one warning, not an error."""
        if self.folder is None:
            return
        entry = {"model": model, "key": key, "answer": answer, "sha256": _digest(answer)}
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(entry, indent=1).encode())
        except OSError as error:
            # Another client of this process may be writing the same answer.
            if not self._warned and self.get(key) is None:
                self._warned = True
                warnings.warn(
                    f"{self.folder}: answers cannot be kept ({error.strerror or error}), and every question will be "
                    "asked again; give another folder as cache",
                    stacklevel=2,
                )

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"


def _digest(answer: str) -> str:
    return hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()
