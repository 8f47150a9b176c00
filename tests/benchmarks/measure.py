"""How the benchmarks measure: side by side in one run, in A B B A order, with median and range."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vlp_gym.models.protocol import ContextualModel


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


@torch.inference_mode()
def window_costs(
    model: Any, text: torch.Tensor, envs: int, window: int, times: int, blocks: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Seconds a step of so many environments: the whole window encoded again, and the newest frame alone.

    Args:
        model: a reward model; both ways must give the same scores.
        text: tokens of one sentence, ``[1, L, D]``.
        envs, window: how many windows of how many frames.
        times: calls in one measurement.
        blocks: of A B B A.
    """
    text = text.expand(envs, -1, -1)
    pixels = torch.randint(0, 256, (envs * window, 224, 224, 3), dtype=torch.uint8)
    last = pixels.view(envs, window, 224, 224, 3)[:, -1].contiguous()
    mask = torch.ones(envs, window, dtype=torch.bool)
    kept = model.encode_frames(pixels).unflatten(0, (envs, window))
    first = kept[:, 0].clone()
    contextual = isinstance(model, ContextualModel)
    if contextual:
        beside = first[:, None].expand_as(kept).flatten(0, 1)
        kept = model.encode_in_context(kept.flatten(0, 1), beside).unflatten(0, (envs, window))
    score = model.score_in_context if contextual else model.score

    def naive() -> torch.Tensor:
        tokens = model.encode_frames(pixels).unflatten(0, (envs, window))
        return model.score(tokens, text, mask).preference

    def newest() -> torch.Tensor:
        tokens = model.encode_frames(last)
        kept[:, -1] = model.encode_in_context(tokens, first) if contextual else tokens
        return score(kept, text, mask).preference

    torch.testing.assert_close(newest(), naive(), rtol=1e-3, atol=1e-3)
    return alternate(lambda: timed(naive, times), lambda: timed(newest, times), blocks)


def spread(values: np.ndarray[Any, Any]) -> str:
    """Median and range."""
    return f"{np.median(values):.3g} ({values.min():.3g} to {values.max():.3g})"
