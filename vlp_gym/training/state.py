"""Saved training states for bit-exact resuming: weights, optimizer, step and random generators."""

from __future__ import annotations

import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import load_state, stored_state
from vlp_gym.schema import (
    FLOATS,
    Count,
    Document,
    Spec,
    below,
    check_generator,
    check_tensors,
    check_torch_generator,
    generator_state,
)
from vlp_gym.storage import read_pair, write_pair

FORMAT_VERSION = 1
Generators = Mapping[str, np.random.Generator | torch.Generator]
Scalar = bool | int | float | str | None
_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what Adam and AdamW keep of each parameter
_NEVER_BELOW_0 = ("step", "exp_avg_sq", "max_exp_avg_sq")


class _Saved(Document):
    format_version: Literal[1]
    step: Count
    optimizer: str
    param_groups: list[dict[str, Any]]
    optimizer_scalars: dict[str, dict[str, Scalar]]
    numpy_generators: dict[str, dict[str, Any]]
    extra: dict[str, Any]


def save_training_state(
    folder: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    step: int,
    generators: Generators | None = None,
    extra: Mapping[str, Any] | None = None,
    best: Mapping[str, Tensor] | None = None,
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
        best: earlier weights of the model, all of those that are saved of it, or none.

    Raises:
        CheckpointError: if the folder cannot be written, or there is NaN or inf in the weights or the optimizer.
    """
    saved = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in stored_state(model).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
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
            numpy_states[name] = generator_state(generator)
    document = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "optimizer": type(optimizer).__name__,
        "param_groups": saved["param_groups"],
        "optimizer_scalars": scalars,
        "numpy_generators": numpy_states,
        "extra": dict(extra or {}),
    }
    where = f"{folder}: the training state was not saved"
    _check(_Saved.parse(document, where), tensors, model, optimizer, generators or {}, where)
    write_pair(folder, document, tensors, stem="training")


def load_training_state(
    folder: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    generators: Generators | None = None,
    best: dict[str, Tensor] | None = None,
    check: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Restore a saved state; on the CPU, training then continues bit for bit.

    Args:
        folder: folder from `save_training_state`.
        model: same architecture as the saved one.
        optimizer: same class and parameters as the saved one.
        generators: same names as the saved ones; their states are set in place.
        best: the saved ``best`` is put into it.
        check: called with the number of steps and the saved ``extra`` before anything changes; raises to refuse them.

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
    saved, generators = _Saved.parse(document, where), generators or {}
    if check is not None:
        check(saved.step, saved.extra)
    groups, state = _check(saved, tensors, model, optimizer, generators, where)
    load_state(model, below(tensors, "model."), str(where))
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if best is not None:
        best.update(below(tensors, "best."))
    for name, generator in generators.items():
        if isinstance(generator, torch.Generator):
            generator.set_state(tensors[f"rng.named.{name}"])
        else:
            generator.bit_generator.state = check_generator(saved.numpy_generators[name], generator, where)
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda.{i}"], i)
    return saved.step, saved.extra


def differing_weights(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Sorted names of the tensors that are in only one of two state dicts or differ in shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (own, other)]
    return sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))


def _check(
    saved: _Saved,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: Optimizer,
    generators: Generators,
    where: str | Path,
) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """The optimizer's groups and state, if everything fits the live objects, or CheckpointError."""
    own, named = stored_state(model), below(tensors, "rng.named.")
    if differing := differing_weights(own, below(tensors, "model.")):
        raise CheckpointError(f"{where}: made for another model; these weights differ: {', '.join(differing[:8])}")
    groups = _check_groups(saved, optimizer, where)
    state, table = _check_state(saved, tensors, optimizer, where)
    if set(generators) != (names := named.keys() | saved.numpy_generators.keys()):
        raise CheckpointError(f"{where}: expected the generators {sorted(names)}, got {sorted(generators)}")
    for name, weight in own.items():
        spec = Spec(FLOATS if weight.is_floating_point() else weight.dtype, tuple(weight.shape))
        table |= {f"{start}.{name}": spec for start in (("model", "best") if below(tensors, "best.") else ("model",))}
    table["rng.cpu"] = Spec.like(torch.get_rng_state())
    for name in tensors:
        if name.startswith("rng.named.") or re.fullmatch(r"rng\.cuda\.\d{1,3}", name):
            table[name] = Spec(torch.uint8, ("bytes" if name.startswith("rng.named.") else 16,))
    check_tensors(tensors, table, where)
    check_torch_generator(tensors["rng.cpu"], torch.Generator(), where)
    for name, generator in generators.items():
        ours = isinstance(generator, torch.Generator)
        if ours != (name in named) or ours == (name in saved.numpy_generators):
            raise CheckpointError(f"{where}: the generator {name} is of torch in one and of NumPy in the other")
        if isinstance(generator, torch.Generator):
            check_torch_generator(named[name], generator, where)
        else:
            check_generator(saved.numpy_generators[name], generator, where)
    return groups, state


def _check_groups(saved: _Saved, optimizer: Optimizer, where: str | Path) -> list[dict[str, Any]]:
    """The parameter groups to load, or CheckpointError."""
    own = optimizer.state_dict()["param_groups"]
    numbers = [[group.get("params") for group in groups] for groups in (saved.param_groups, own)]
    sizes = [[len(x) if isinstance(x, list) else 0 for x in groups] for groups in numbers]
    if saved.optimizer != type(optimizer).__name__ or sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{where}: made for {saved.optimizer} with {sizes[0]} parameters in its groups, got "
            f"{type(optimizer).__name__} with {sizes[1]}"
        )
    groups = []
    for number, (group, live) in enumerate(zip(saved.param_groups, own, strict=True)):
        # An older torch may not have had a switch that this one has.
        group = {**{name: value for name, value in live.items() if value is None or value is False}, **group}
        live = {"initial_lr": 0.0, **live}  # a schedule's, made after this
        for name in group.keys() | live.keys() - {"initial_lr"}:
            if not _alike(group.get(name, "nothing"), live.get(name, "nothing")):
                raise CheckpointError(
                    f"{where}: param_groups.{number}.{name}: expected a value like {live.get(name, 'nothing')!r}, "
                    f"got {reprlib.repr(group.get(name, 'nothing'))}"
                )
        groups.append({name: tuple(x) if name == "betas" else x for name, x in group.items()})
    return groups


def _alike(saved: Any, live: Any) -> bool:
    """Whether an optimizer of the live value can go on with the saved one: numbers may differ, choices may not."""
    if isinstance(live, tuple):  # betas
        same = isinstance(saved, (list, tuple)) and len(saved) == len(live)
        return same and all(_alike(beta, 0.0) and beta < 1 for beta in saved)
    if isinstance(live, (int, float)) and not isinstance(live, bool):
        return isinstance(saved, (int, float)) and not isinstance(saved, bool) and 0 <= saved < 1e300
    return type(saved) is type(live) and bool(saved == live)


def _check_state(
    saved: _Saved, tensors: Mapping[str, Tensor], optimizer: Optimizer, where: str | Path
) -> tuple[dict[int, dict[str, Any]], dict[str, Spec]]:
    """The state of each parameter by its number, and the table of its tensors, or CheckpointError."""
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    table: dict[str, Spec] = {}
    group_of = [group for group in optimizer.param_groups for _ in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    entries = {f"{index}.{key}": value for index, row in saved.optimizer_scalars.items() for key, value in row.items()}
    for name, value in {**entries, **below(tensors, "optimizer.")}.items():
        index, _, key = name.partition(".")
        if not re.fullmatch("0|[1-9][0-9]{0,8}", index) or int(index) >= len(parameters) or (name in entries and adam):
            raise CheckpointError(f"{where}: optimizer.{name[:80]!r}: this {saved.optimizer} keeps no such state")
        state[int(index)][key] = value
        if isinstance(value, Tensor):
            shape = parameters[int(index)].shape if adam else value.shape
            low = 0.0 if key in _NEVER_BELOW_0 else -float("inf")
            table[f"optimizer.{name}"] = Spec(FLOATS, () if key == "step" else tuple(shape), low)
    first = next(iter(state.values()), {}).keys()
    for number, row in state.items():
        expected = _ADAM | ({"max_exp_avg_sq"} if group_of[number].get("amsgrad") else set()) if adam else first
        if row.keys() != expected:
            raise CheckpointError(f"{where}: optimizer.{number}: expected {sorted(expected)}, got {sorted(row)}"[:1000])
    return dict(state), table
