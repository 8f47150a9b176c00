"""Cached answers of chat models, changed with their digest made right again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from tests.mutations import mutate as change
from tests.mutations.harness import Target
from vlp_gym.prompting.cache import PromptCache, question_key

KEY = question_key("model", {"temperature": 0.0}, ["What is shown?"])
ANSWER = "A red box. Score: 0.5"


def make(folder: Path) -> None:
    PromptCache(folder).put(KEY, ANSWER, "model")


def mutate(folder: Path, rng: np.random.Generator) -> str:
    path = folder / KEY[:2] / f"{KEY}.json"
    if (kind := rng.integers(8)) == 0:
        path.unlink()
        target = ("/dev/zero", str(path), "/dev/tty", str(folder))[rng.integers(4)]
        os.mkfifo(path) if rng.integers(2) else path.symlink_to(target)
        return f"a pipe, or a link to {target}"
    if kind < 3:
        new, what = change.bytes_of(path.read_bytes(), rng)
        path.write_bytes(new)
        return what
    entry, what = change.document(json.loads(path.read_text()), rng)
    if isinstance(entry, dict) and isinstance(entry.get("answer"), str) and rng.integers(4):
        entry["sha256"] = hashlib.sha256(entry["answer"].encode("utf-8", "surrogatepass")).hexdigest()
    path.write_text(json.dumps(entry))
    return what


def read(folder: Path) -> str | None:
    """Ask the cache, and keep an answer where it has none."""
    cache = PromptCache(folder)
    answer = cache.get(KEY)
    cache.put(KEY, ANSWER, "model")
    return answer


def wrong(answer: str | None) -> str:
    return "" if answer is None or (isinstance(answer, str) and len(answer) <= 2**20) else f"{type(answer)}"


TARGET = Target(make, mutate, read, wrong, ())
