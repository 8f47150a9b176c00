"""What building a model may cost: no more numbers than the file of its weights holds.

Without this, a small folder whose config names a huge model would fill the memory before its tensors are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlp_gym.errors import CheckpointError, MissingExtraError, reason

_SPARE = 2**22  # numbers for buffers and black frames
_LEAST = 1000  # what a tensor counts at least, so that an endless row of empty ones ends, too
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.arange,
           torch.linspace, torch.eye)  # fmt: skip
_COPIES = (torch.clone, Tensor.clone, torch.empty_like, torch.zeros_like, torch.ones_like, torch.rand_like,
           torch.randn_like)  # fmt: skip
_counting: ContextVar[_Budget | None] = ContextVar("_counting", default=None)


@contextmanager
def within(numbers: int) -> Iterator[None]:
    """Make new tensors within a budget, which is not part of one around it.

    Args:
        numbers: the numbers that the model's file holds; the model may make twice as many, and some for buffers.

    Raises:
        OverBudgetError: it would make more.
    """
    budget = _Budget(numbers)
    token = _counting.set(budget)
    try:
        with budget:
            yield
    finally:
        _counting.reset(token)


@contextmanager
def building(what: str, numbers: int) -> Iterator[None]:
    """Build a model on the CPU `within` a budget; the global random generators stay untouched.

    Args:
        what: the beginning of the error's message.
        numbers: see `within`.

    Raises:
        CheckpointError: the model cannot be built, for whatever reason.
        MissingExtraError: a package that it needs is not installed.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), within(numbers):
            yield
    except (CheckpointError, MissingExtraError):
        raise
    except Exception as error:  # a config that anyone may have written can make a constructor raise anything
        raise CheckpointError(f"{what} ({reason(error)})") from error


class OverBudgetError(Exception):
    """A model is larger than its file."""


class _Budget(TorchFunctionMode):
    """Counts the numbers of new tensors before they are made."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.left = 2 * numbers + _SPARE

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _counting.get() is self:  # not one around it, whose model is not the one being built
            if func in _MAKERS:
                options = {name: value for name, value in kwargs.items() if name not in ("generator", "out")}
                self._take(func(*args, **{**options, "device": "meta"}).numel())
            elif func in _COPIES:
                self._take((args[0] if args else kwargs["input"]).numel())
        return func(*args, **kwargs)

    def _take(self, numbers: int) -> None:
        self.left -= max(numbers, _LEAST)
        if self.left < 0:
            raise OverBudgetError(f"it asks for a larger model than the {self.numbers:,} numbers of its file fill")
