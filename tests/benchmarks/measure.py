"""How the benchmarks measure: side by side in one run, in A B B A order, with median and range."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def machine() -> str:
    """What the figures were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} torch thread(s), no GPU"


def alternate(
    a: Callable[[], float], b: Callable[[], float], blocks: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Measure A B B A, `blocks` times; the two series pair up in time, so that drift cancels in their ratio."""
    pairs: list[tuple[float, float]] = []
    for _ in range(blocks):
        first = a(), b()
        second_b, second_a = b(), a()
        pairs += [first, (second_a, second_b)]
    return tuple(np.array(column) for column in zip(*pairs, strict=True))  # type: ignore[return-value]


def timed(call: Callable[[], Any], times: int) -> float:
    """Seconds a call."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def spread(values: np.ndarray[Any, Any]) -> str:
    """Median and range."""
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"
