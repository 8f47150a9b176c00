"""How good a state of Meta-World is, whatever the environment pays for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def judge_state(info: Mapping[str, Any]) -> float:
    """1 if the task is done, else minus the way that its object has still to go, in metres.

    The environment's own reward also pays a hand that comes near the object, in button-press nearly as much as the
    finished task: it is no measure of which of two clips is better.

    Args:
        info: from a step, with Meta-World's ``success`` and ``obj_to_target``.

    >>> judge_state({"success": 0.0, "obj_to_target": 0.25}), judge_state({"success": 1.0, "obj_to_target": 0.02})
    (-0.25, 1.0)
    """
    return 1.0 if info["success"] else -float(info["obj_to_target"])
