"""The content of what is read from disk: schemas of JSON documents, tables of tensors, states of random generators.

A hash says that a file is whole, not that its content makes sense: who can write a folder can write its hashes too.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from typing_extensions import Self

from vlp_gym.errors import CheckpointError

Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Document(BaseModel):
    """Base of every JSON document: its fields, their types and ranges, and nothing else; frozen, without NaN or inf."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, where: str | Path) -> Self:
        """Check the values of a document.

        Raises:
            CheckpointError: naming `where` and the first field that is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise CheckpointError(f"{where}: {first_fault(error)}") from None
        except (RecursionError, OverflowError) as error:
            raise CheckpointError(f"{where}: not a document of this kind ({error})") from None


def first_fault(error: ValidationError) -> str:
    """The first field that is wrong, what was expected there, and what came."""
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, fault["loc"])) or "the document"
    return f"{field}: {_said(fault)}"


@dataclass(frozen=True)
class Spec:
    """What a tensor must be.

    Attributes:
        dtype: its dtype, or several that are allowed.
        shape: a size for each axis; a name stands for any size that is the same wherever the name comes.
        low: least value.
        high: largest value.
        nan: allow NaN and inf.
        optional: it may be missing.
    """

    dtype: torch.dtype | tuple[torch.dtype, ...]
    shape: tuple[int | str, ...]
    low: float = -math.inf
    high: float = math.inf
    nan: bool = False
    optional: bool = False

    @classmethod
    def like(cls, tensor: Tensor, **limits: Any) -> Spec:
        """A tensor of this one's dtype and shape."""
        return cls(tensor.dtype, tuple(tensor.shape), **limits)


def check_tensors(
    tensors: Mapping[str, Tensor], table: Mapping[str, Spec], where: str | Path, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Check tensors against a table of them.

    Args:
        tensors: what was read.
        table: what must be there, by name, and nothing else.
        where: named in errors.
        sizes: named sizes that are known before.

    Returns:
        The named sizes.

    Raises:
        CheckpointError: naming `where` and the first tensor that is wrong.
    """
    found = dict(sizes or {})
    needed = [name for name, spec in table.items() if not spec.optional]
    for fault, names in (("missing", set(needed) - tensors.keys()), ("unknown", tensors.keys() - table.keys())):
        if names:
            raise CheckpointError(f"{where}: {fault} tensors: {listed(sorted(names))}")
    for name, spec in table.items():
        if name in tensors and (fault := _fault(tensors[name], spec, found)):
            raise CheckpointError(f"{where}: {name}: expected {fault}")
    return found


def below(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, such as "model.", without that beginning."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first few names and the number of the others."""
    shown = [repr(name)[1:-1][:200] for name in names]  # a name from a file may hold anything, at any length
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """A NumPy generator's state as JSON values; an array becomes a list with its dtype."""
    state: dict[str, Any] = _plain(generator.bit_generator.state)
    return state


def check_generator(state: Any, generator: np.random.Generator, where: str | Path) -> dict[str, Any]:
    """Check a state from `generator_state`, by a trial on a new generator of the same kind.

    Returns:
        What ``generator.bit_generator.state`` can be set to.

    Raises:
        CheckpointError: naming `where`.
    """
    trial = type(generator.bit_generator)(0)
    try:
        values: dict[str, Any] = _arrays(state)
        trial.state = values
        same = _plain(trial.state) == state
    except Exception as error:  # each kind of generator raises other kinds of errors for a wrong state
        raise CheckpointError(f"{where}: no state of {type(trial).__name__} ({reprlib.repr(str(error))})") from None
    if not same or (type(trial).__name__ == "PCG64" and state["state"]["inc"] % 2 == 0):
        raise CheckpointError(f"{where}: no state of {type(trial).__name__}")
    return values


def check_torch_generator(state: Tensor, generator: torch.Generator, where: str | Path) -> None:
    """Check a state of a torch generator, by a trial on a new one of the same device.

    Raises:
        CheckpointError: naming `where`.
    """
    check_tensors({"state": state}, {"state": Spec.like(generator.get_state())}, where)
    trial = torch.Generator(generator.device)
    try:
        trial.set_state(state)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: no state of a generator of torch ({error})") from None
    if not torch.equal(trial.get_state(), state):
        raise CheckpointError(f"{where}: no state of a generator of torch")


def _said(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "missing":
        return "missing"
    if fault["type"] == "extra_forbidden":
        return "an unknown entry"
    message = fault["msg"].replace("Input should be", "expected").removeprefix("Value error, ")
    return f"{message}, got {reprlib.repr(fault['input'])}"


def _fault(tensor: Tensor, spec: Spec, sizes: dict[str, int]) -> str:
    """What was expected and what came, or "" if the tensor is as it must be; adds its named sizes."""
    kinds = spec.dtype if isinstance(spec.dtype, tuple) else (spec.dtype,)
    if tensor.dtype not in kinds:
        return f"{str(kinds[0]).removeprefix('torch.')}, got {str(tensor.dtype).removeprefix('torch.')}"
    known = [size if isinstance(size, int) else sizes.get(size) for size in spec.shape]
    if len(known) != tensor.ndim or any(k is not None and k != n for k, n in zip(known, tensor.shape, strict=False)):
        wanted = ", ".join(str(name if size is None else size) for name, size in zip(spec.shape, known, strict=True))
        return f"the shape [{wanted}], got {list(tensor.shape)}"
    for name, size in zip(spec.shape, tensor.shape, strict=True):
        if isinstance(name, str) and sizes.setdefault(name, size) != size:
            return f"equal sizes {name}, got {list(tensor.shape)}"
    if not tensor.numel():
        return ""
    if tensor.dtype == torch.bool:
        # Any byte can stand in a file, but a bool of another byte than 0 and 1 is no number to compute with.
        return "" if int(tensor.view(torch.uint8).max()) <= 1 else "bytes 0 and 1, got others"
    if tensor.is_floating_point() and not spec.nan and not torch.isfinite(tensor).all():
        return "finite numbers, got NaN or inf"
    if (spec.low, spec.high) != (-math.inf, math.inf):
        low, high = (float(x) for x in torch.aminmax(tensor))
        if low < spec.low or high > spec.high:
            return f"numbers from {spec.low:g} to {spec.high:g}, got {low if low < spec.low else high:g}"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"dtype", "values"}:
            return np.array(value["values"], dtype=value["dtype"])
        return {key: _arrays(entry) for key, entry in value.items()}
    return value
