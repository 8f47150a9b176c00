"""Time and memory of a device, and what the machine is."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import torch

MIB = 2**20
PACKAGES = (
    "torch", "torchvision", "transformers", "peft", "accelerate", "numpy", "gymnasium", "mujoco", "metaworld",
    "open_clip_torch", "stable_baselines3",
)  # fmt: skip


def machine(device: str) -> dict[str, Any]:
    """Names and versions: GPU, driver, CUDA, processor, packages (None where one is missing)."""
    facts: dict[str, Any] = {"gpu": None, "driver": None, "cuda": torch.version.cuda, "cudnn": None}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = f"{properties.name}, {properties.total_memory // MIB:,} MiB"
        facts["driver"] = _driver()
        facts["cudnn"] = torch.backends.cudnn.version()
    facts |= {
        "processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "MUJOCO_GL": os.environ.get("MUJOCO_GL"),
    }
    return facts | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return lines[0] if lines else None


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], times: int, device: str) -> float:
    """Seconds a call, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / times


def milliseconds(call: Callable[[], Any], times: int, device: str) -> list[float]:
    """Milliseconds of each of `times` calls, after a warm-up call."""
    call()
    return [1e3 * seconds(call, 1, device) for _ in range(times)]


def forget_peak(device: str) -> None:
    """Restart the measurement of peak memory; on a CPU it covers the whole process."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib(device: str) -> float:
    """Peak memory in MiB: the tensors' on a GPU, the process's on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def millions(weights: Iterable[torch.Tensor]) -> float:
    """How many numbers these weights are, in millions."""
    return sum(weight.numel() for weight in weights) / 1e6
