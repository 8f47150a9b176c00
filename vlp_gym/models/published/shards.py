"""Read weights as the hub stores large models: one safetensors file, or several with an index."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from vlp_gym.errors import CheckpointError
from vlp_gym.storage import read_file

_MAX_INDEX_BYTES = 64 * 2**20


def read_shards(folder: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a folder with ``model.safetensors``, or with shards and ``model.safetensors.index.json``.

    Raises:
        CheckpointError: a file is missing or damaged, or a shard lacks a tensor of the index.
    """
    folder = Path(folder)
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    where: dict[str, list[str] | None] = {}
    if index.is_file():
        try:
            weights = json.loads(read_file(index, _MAX_INDEX_BYTES))["weight_map"]
            for key, file in weights.items():
                if Path(file).name != file or not file.endswith(".safetensors"):
                    raise ValueError(f"{file!r} is not the name of a .safetensors file")
                where.setdefault(file, []).append(key)  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error})") from error
    elif single.is_file():
        where[single.name] = None
    else:
        raise CheckpointError(
            f"{folder}: expected {single.name} or {index.name}; pickle files (.bin, .pt) are never loaded"
        )
    state = {}
    for file, keys in where.items():
        try:
            if not (folder / file).is_file():  # a pipe or a device would never end
                raise FileNotFoundError("no such file")
            with safe_open(folder / file, framework="pt") as shard:
                state.update({key: shard.get_tensor(key) for key in (shard.keys() if keys is None else keys)})
        except Exception as error:  # the parser's own kinds, and Python's
            raise CheckpointError(
                f"{folder / file}: missing, damaged or incomplete ({error}); fetch it again"
            ) from error
    return state
