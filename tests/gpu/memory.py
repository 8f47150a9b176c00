"""What wrappers and engines that were opened and closed leave in the memory of the device."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import psutil
import torch

from tests.gpu.devices import MIB, synchronize
from tests.gpu.models import SENTENCE
from tests.gpu.report import Figure
from tests.gpu.sizes import Size
from vlp_gym.testing import PaintedEnv
from vlp_gym.wrappers import VLPRewardWrapper


def memory(size: Size, device: str) -> Iterator[Figure]:
    """Growth over openings of a wrapper that loads its model, steps, and is closed.

    The first ones fill what PyTorch keeps: its 32 streams, their caches, the workspaces of libraries.
    """
    _open_and_close(device)
    first = _used(device)
    for _ in range(size.settled - 1):
        _open_and_close(device)
    settled, threads = _used(device), threading.active_count()
    for _ in range(size.opened - size.settled):
        _open_and_close(device)
    last = _used(device)
    for name in first:
        yield Figure(f"{name}, growth over openings 2 to {size.settled}", settled[name] - first[name], "MiB")
        # Not of a process: Python and the allocator below it keep what they once had.
        bar = {"at_most": 32.0} if device == "cuda" else {}
        growth = last[name] - settled[name]
        yield Figure(f"{name}, growth over openings {size.settled + 1} to {size.opened}", growth, "MiB", **bar)
        yield Figure(f"{name}, at the end", last[name], "MiB")
    yield Figure("threads left", threading.active_count() - threads, at_most=0)


def _open_and_close(device: str) -> None:
    wrapper = VLPRewardWrapper(PaintedEnv(), SENTENCE, "vlp-compact", mode="async", device=device)
    wrapper.reset()
    for _ in range(5):
        wrapper.step(0)
    wrapper.flush()
    wrapper.close()


def _used(device: str) -> dict[str, float]:
    gc.collect()
    synchronize(device)
    if device != "cuda":
        return {"memory of the process": psutil.Process().memory_info().rss / MIB}
    free, total = torch.cuda.mem_get_info()
    return {
        "tensors on the GPU": torch.cuda.memory_allocated() / MIB,
        "PyTorch's pool": torch.cuda.memory_reserved() / MIB,
        "the whole GPU": (total - free) / MIB,
    }
