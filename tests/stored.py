"""What is saved, altered and loaded again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlp_gym.errors import CheckpointError
from vlp_gym.storage import Packed, write_pair


def check_refused(stored: Packed, folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any], message: str):
    """Loading must raise this after `change` has altered the document and the tensors, whose hashes are right."""
    document, tensors = stored.pack()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(document, tensors)
    write_pair(folder, document, tensors, stem=stored.stem)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{folder}/{stored.stem}.json: {message}')}$"):
        type(stored).load(folder)
