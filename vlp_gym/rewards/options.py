"""The options of every wrapper, written once: flat keyword arguments in, a reward stream out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TypedDict

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.settings import Mode, check_mode
from vlp_gym.models.protocol import History, RewardModel
from vlp_gym.rewards.shaping import Reward, Shaping
from vlp_gym.rewards.stream import RewardStream, Untaken, check_untaken

if TYPE_CHECKING:
    import torch


class Shorthand(TypedDict, total=False):
    """The keyword arguments that all wrappers take, see `VLPRewardWrapper`."""

    scale: float
    gamma: float
    env_reward_weight: float
    success_threshold: float | None
    success_bonus: float
    terminate_on_success: bool
    every: int
    history: History | None
    window: int | None
    device: str | torch.device
    mode: Mode
    truncate: bool
    flat_info: bool
    untaken: Untaken


def make_stream(
    instructions: Sequence[str],
    model: str | os.PathLike[str] | RewardModel | QueryEngine,
    reward: Reward | Shaping = "progress",
    *,
    scale: float = 1.0,
    gamma: float = 0.99,
    env_reward_weight: float = 0.0,
    success_threshold: float | None = None,
    success_bonus: float = 0.0,
    terminate_on_success: bool = False,
    every: int = 1,
    history: History | None = None,
    window: int | None = None,
    device: str | torch.device = "auto",
    mode: Mode = "sync",
    truncate: bool = False,
    flat_info: bool = False,
    untaken: Untaken = "warn",
) -> RewardStream:
    """The stream of a wrapper; arguments and errors are those of `VLPRewardWrapper`, with one instruction for each env.

    Raises:
        ValueError: also for an option beside an object that brings it: `Shaping` or `QueryEngine`.
    """
    check_mode(mode)
    check_untaken(untaken)
    if not (isinstance(every, int) and every >= 1):
        raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
    given = (scale, gamma, env_reward_weight, success_threshold, success_bonus, terminate_on_success)
    if not isinstance(reward, Shaping):
        reward = Shaping(reward, *given)
    elif given != tuple(option.default for option in fields(Shaping)[1:]):  # all but the kind
        raise ValueError("a Shaping brings its own scale, gamma, env_reward_weight, success_* and terminate_on_success")
    if not isinstance(model, QueryEngine):
        engine = QueryEngine(model, window=window, history=history, device=device, truncate=truncate, mode=mode)
        return RewardStream(instructions, engine, reward, every=every, flat=flat_info, untaken=untaken)
    if (history, window, device, truncate) != (None, None, "auto", False) or mode == "async" != model.mode:
        raise ValueError("a QueryEngine brings its own history, window, device, truncate and mode")
    return RewardStream(instructions, model, reward, every=every, owned=False, flat=flat_info, untaken=untaken)
