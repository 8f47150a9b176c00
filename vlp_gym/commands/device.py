"""Where the commands put their models."""

from __future__ import annotations


def best_device() -> str:
    """CUDA if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
