"""What an engine can be told, and the check of it."""

from __future__ import annotations

import math
from typing import Literal, get_args

Mode = Literal["sync", "async"]
Policy = Literal["block", "widen_stride"]


def check_settings(
    mode: str, policy: str, max_batch: int, slots: int, threads: int, max_wait_s: float, timeout_s: float
) -> None:
    """Raise ValueError for what makes no sense; the arguments are those of `QueryEngine`."""
    check_mode(mode)
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {get_args(Policy)}, got {policy!r}")
    for name, value in (("max_batch", max_batch), ("slots", slots), ("threads", threads)):
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
    if not (0.0 <= max_wait_s < math.inf and 0.0 < timeout_s < math.inf):
        raise ValueError(f"max_wait_s and timeout_s must be seconds, got {max_wait_s} and {timeout_s}")


def check_mode(mode: str) -> None:
    """Raise ValueError unless the mode exists."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
