"""Damage to a pair of `vlp_gym.storage`: mostly to its content, with both hashes made right again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.mutations import mutate as change
from tests.mutations.resign import resign


def damage(folder: Path, stem: str, rng: np.random.Generator) -> str:
    """Change the document, a tensor, or plain bytes of a pair, and say what."""
    name = "config.json" if stem == "model" else f"{stem}.json"
    kind = ("document", "document", "document", "tensors", "tensors", "tensors", "tensors", "bytes")[rng.integers(8)]
    if kind == "bytes":
        path = folder / (name if rng.integers(2) else f"{stem}.safetensors")
        new, what = change.bytes_of(path.read_bytes(), rng)
        path.write_bytes(new)
        return f"unsigned {path.name}: {what}"
    if kind == "tensors":
        what = change.tensors(folder / f"{stem}.safetensors", rng)
        resign(folder, stem=stem)
        return what
    document = json.loads((folder / name).read_text())
    content: Any = {key: value for key, value in document.items() if key not in ("sha256", "config_sha256")}
    content, what = change.document(content, rng)
    resign(folder, content if isinstance(content, dict) else {"all": content}, stem=stem)
    return what
