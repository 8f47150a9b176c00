"""Wrappers that replace an environment's reward by a reward from a sentence.

The names are imported when they are first used (PEP 562): a worker process needs `capture_frames` only, and no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp_gym.wrappers.capture import capture_frames as capture_frames
    from vlp_gym.wrappers.single import VLPRewardWrapper as VLPRewardWrapper
    from vlp_gym.wrappers.vector import VLPVectorRewardWrapper as VLPVectorRewardWrapper

_HOME = {"VLPRewardWrapper": "single", "VLPVectorRewardWrapper": "vector", "capture_frames": "capture"}

__all__ = ["VLPRewardWrapper", "VLPVectorRewardWrapper", "capture_frames"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'vlp_gym.wrappers' has no attribute {name!r}")
    return getattr(import_module(f"vlp_gym.wrappers.{_HOME[name]}"), name)
