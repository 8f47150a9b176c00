"""Hashes made right again, so that what is refused is refused for its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def resign(folder: Path, document: dict[str, Any] | None = None, stem: str = "model") -> None:
    """Write the document of a `vlp_gym.storage` pair with the hashes of what is there."""
    path = folder / ("config.json" if stem == "model" else f"{stem}.json")
    document = json.loads(path.read_text()) if document is None else document
    rest = {key: value for key, value in document.items() if key not in ("sha256", "config_sha256")}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    hashes = {
        "config_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "sha256": hashlib.sha256((folder / f"{stem}.safetensors").read_bytes()).hexdigest(),
    }
    path.write_text(json.dumps({**rest, **hashes}))
