"""Convert published checkpoints into folders with ``config.json`` and ``model.safetensors``.

Only this file opens ``.pt`` files, with weights_only: a file that would run code is refused.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models.budget import building
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.published.shards import read_shards

# System -> "module:function", which builds the model from the published state and options.
CONVERTERS = {
    "liv": "vlp_gym.models.liv:from_published",
    "vip": "vlp_gym.models.vip:from_published",
    "r3m": "vlp_gym.models.r3m:from_published",
    "roboclip": "vlp_gym.models.roboclip:from_published",
    "robometer": "vlp_gym.models.robometer:RobometerModel.from_published",
    "rewind": "vlp_gym.models.rewind:from_published",
}
_STATE_KEYS = ("model_state_dict", "state_dict")  # keys of the tensors in files that do not use the system's name


def convert(system: str, source: str | Path, out: str | Path, **options: Any) -> Path:
    """Convert a published checkpoint into a folder for `load_reward_model`; nothing is written unless all fits.

    Args:
        system: a key of `CONVERTERS`.
        source: the published ``.pt`` file (tensors only), a ``.safetensors`` file, or a folder of shards.
        out: the folder to write.
        options: passed to the system's ``from_published``, such as ``tokenizer`` for R3M.

    Returns:
        The folder.

    Raises:
        ValueError: the system is unknown.
        CheckpointError: the file is missing, damaged, holds more than tensors, or is of another architecture; the
            message lists missing, unexpected and misshaped keys.
    """
    if system not in CONVERTERS:
        raise ValueError(f"system: expected one of {sorted(CONVERTERS)}, got {system!r}")
    source = Path(source)
    state = read_published(source, system)
    from_published: Callable[..., nn.Module] = resolve_name(CONVERTERS[system])
    numbers = sum(tensor.numel() for tensor in state.values())
    try:
        with building("its tensors do not fit together", numbers):
            model = from_published(state, **options)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    card = (
        f"# {system}, for vlp_gym\n\nConverted from the published file `{source.name}`. The weights keep the licence "
        "of their authors.\n"
    )
    return save_checkpoint(model, out, card=card)


def read_published(source: str | Path, system: str) -> dict[str, Tensor]:
    """Read the tensors of a published file, those under the system's key if it has one.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    source = Path(source)
    if source.is_dir():
        return read_shards(source)
    if not source.is_file():
        raise CheckpointError(f"{source}: expected a published checkpoint file, but it is missing")
    payload: Any = _read_safetensors(source) if source.suffix == ".safetensors" else _read_torch(source)
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{source}: expected a dict of tensors, got {type(payload).__name__}")
    inner = next((payload[key] for key in (system, *_STATE_KEYS) if isinstance(payload.get(key), Mapping)), payload)
    others = [str(key) for key, value in inner.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others or not inner:
        found = f"other things as well: {', '.join(others[:8])}" if others else "nothing"
        raise CheckpointError(f"{source}: expected tensors by name, with or without {system!r} above them, got {found}")
    for name, tensor in inner.items():
        # The tensors of a .pt file may be views that claim any size of a few bytes.
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{source}: {name} is no plain tensor with all its numbers in the file")
    return dict(inner)


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove a prefix from the names that begin with it.

    >>> list(without_prefix({"module.a": torch.zeros(1), "b": torch.zeros(1)}, "module."))
    ['a', 'b']

    Raises:
        CheckpointError: two names become equal.
    """
    short = {key.removeprefix(prefix): value for key, value in state.items()}
    if len(short) < len(state):
        twins = sorted(key for key in state if key.startswith(prefix) and key.removeprefix(prefix) in state)
        raise CheckpointError(f"keys both with and without the prefix {prefix!r}: {', '.join(twins[:8])}")
    return short


def _read_torch(source: Path) -> Any:
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > source.stat().st_size:
                    raise ValueError("its unpacked size is larger than the file, and torch.save packs nothing")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol|'torch.load' received a zip file", UserWarning)
            # ReWiND's files also hold its training options in this class of plain attributes.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{source}: cannot be read as tensors alone: it is damaged, or holds objects whose loading would run code. "
            "Nothing of it was loaded; save its state_dict alone, or as .safetensors, and convert that"
        ) from error
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{source}: not a checkpoint of torch.save, or damaged ({reason})") from error


def _read_safetensors(source: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(source)
    except Exception as error:  # the parser's own kinds, and Python's
        raise CheckpointError(f"{source}: not a valid safetensors file ({error})") from error
