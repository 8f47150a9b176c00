"""Saved training states for bit-exact resuming: weights, optimizer, step and random generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import load_state, stored_state
from vlp_gym.storage import read_pair, write_pair

FORMAT_VERSION = 1


def save_training_state(
    folder: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
    generators: Mapping[str, np.random.Generator | torch.Generator] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write ``training.json`` and ``training.safetensors`` atomically.

    Args:
        folder: created if missing; may also hold a model checkpoint.
        model: the weights that its checkpoints hold are saved, in full precision (see
            `vlp_gym.models.checkpoint.stored_state`).
        optimizer: saved with its state and parameter groups (learning rates included).
        step: optimizer steps done so far.
        generators: named random generators of the training. torch's global generators (CPU and CUDA) are always saved.
        extra: the caller's JSON values, such as a history of losses.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    saved = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in stored_state(model).items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    numpy_states = {}
    for name, generator in (generators or {}).items():
        if isinstance(generator, torch.Generator):
            tensors[f"rng.named.{name}"] = generator.get_state()
        else:
            numpy_states[name] = _plain(generator.bit_generator.state)
    document = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "optimizer": type(optimizer).__name__,
        "param_groups": saved["param_groups"],
        "optimizer_scalars": scalars,
        "numpy_generators": numpy_states,
        "extra": dict(extra or {}),
    }
    write_pair(folder, document, tensors, stem="training")


def load_training_state(
    folder: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    generators: Mapping[str, np.random.Generator | torch.Generator] | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Restore a saved state; on the CPU, training then continues bit for bit.

    Args:
        folder: folder from `save_training_state`.
        model: same architecture as the saved one.
        optimizer: same class and parameters as the saved one.
        generators: same names as the saved ones; their states are set in place.
        check: called with the saved ``extra`` before anything changes; raises to refuse the state.

    Returns:
        The number of steps done, and the saved ``extra``.

    Raises:
        CheckpointError: if the state is missing, damaged, or belongs to another model, optimizer or set of generators;
            nothing has changed then.
    """
    document, tensors = read_pair(folder, stem="training")
    where = Path(folder) / "training.json"
    if (found := document.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(f"{where}: expected format_version {FORMAT_VERSION}, got {found!r}")
    if check is not None:
        check(document["extra"])
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in document["param_groups"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(v) for index, v in document["optimizer_scalars"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    generators = generators or {}
    if differing := differing_weights(stored_state(model), weights):
        raise CheckpointError(f"{where}: made for another model; these weights differ: {', '.join(differing[:8])}")
    own = (type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups])
    saved = (document["optimizer"], [len(group["params"]) for group in groups])
    if own != saved:
        raise CheckpointError(
            f"{where}: made for {saved[0]} with {saved[1]} parameters in its groups, got {own[0]} with {own[1]}"
        )
    named = {name.removeprefix("rng.named.") for name in tensors if name.startswith("rng.named.")}
    if set(generators) != (names := named | document["numpy_generators"].keys()):
        raise CheckpointError(f"{where}: expected the generators {sorted(names)}, got {sorted(generators)}")

    load_state(model, weights, str(where))
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(tensors[f"rng.named.{name}"])
        else:
            generator.bit_generator.state = _arrays(document["numpy_generators"][name])
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda.{i}"], i)
    return document["step"], document["extra"]


def differing_weights(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Sorted names of the tensors that are in only one of two state dicts or differ in shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (own, other)]
    return sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))


def _plain(value: Any) -> Any:
    """A bit generator's state as JSON values; an array becomes a list with its dtype."""
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, Mapping):
        if value.keys() == {"dtype", "values"}:
            return np.array(value["values"], dtype=value["dtype"])
        return {key: _arrays(entry) for key, entry in value.items()}
    return value
