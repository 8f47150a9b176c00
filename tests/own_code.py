"""A model's folder that asks transformers to run code of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


def with_own_code(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a model into a folder and add code to it; asked whether it may run, the terminal says "y".

    Returns:
        A path beside the folder that exists once the code has run.
    """
    shutil.copytree(source, folder)
    said = json.loads((folder / "config.json").read_text())
    said |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(said))
    ran = folder.with_name("ran")
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return ran
