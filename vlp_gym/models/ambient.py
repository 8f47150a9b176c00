"""PyTorch as models expect it, whatever the process has set for itself: default dtype, default device, autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDE = (torch.float64, np.float64)


@contextmanager
def usual_torch(model: object = None) -> Iterator[None]:
    """New tensors are float32 on the CPU and nothing is cast, in this thread; code around it may have set otherwise.

    Simulations set the default dtype float64. It belongs to all threads, so it is not touched: what would be float64
    only because of it is made float32. A model that is float64 itself keeps it.
    """
    with ExitStack() as stack:
        for kind in filter(_casts, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() == torch.float64 and torch.float64 not in float_dtypes(model):
            stack.enter_context(_Float32())
        yield


def _casts(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # PyTorch before 2.4 does not say
        return True


def float_dtypes(model: object) -> set[torch.dtype]:
    """The dtypes of a model's weights, those of integers apart."""
    weights = model.parameters() if isinstance(model, torch.nn.Module) else ()
    return {weight.dtype for weight in weights if weight.is_floating_point()}


class _Float32(TorchFunctionMode):
    """Makes float32 of every float64 result that nobody asked for, neither by an argument nor by name."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = function(*args, **given)
        if function is Tensor.double or _has_dtype((args, given)):
            return result
        return _narrow(result)


def _has_dtype(value: Any) -> bool:
    """Whether there is float64 in an argument, or a dtype of the caller's choice."""
    if isinstance(value, Mapping):
        return any(map(_has_dtype, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_dtype, value))
    return isinstance(value, torch.dtype) or getattr(value, "dtype", None) in WIDE


def _narrow(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.float() if result.dtype == torch.float64 else result
    if isinstance(result, (list, tuple)) and any(isinstance(item, Tensor) for item in result):
        made = [_narrow(item) for item in result]
        return type(result)(*made) if hasattr(result, "_fields") else type(result)(made)
    return result
