"""Wrappers around the reward wrapper: which of them may make steps, or change rewards, that a late reward passes by.

A wrapper that skips frames or clips rewards sees what a step returns, and no reward that comes later. Around such a one
rewards must not come late. Wrappers are known by their `step`: one that is not in the lists may do anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from gymnasium.wrappers import vector

MEDDLING = (
    "%s lies outside the reward wrapper, and may make steps or change rewards: each step waits for its reward, as with "
    'mode="sync". Put it inside to have late rewards'
)

_HARMLESS = (
    gym.Wrapper,
    gym.ObservationWrapper,
    gym.ActionWrapper,
    wrappers.AddRenderObservation,
    wrappers.FrameStackObservation,
    wrappers.HumanRendering,
    wrappers.NormalizeObservation,
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.RenderCollection,
    wrappers.TimeAwareObservation,
    wrappers.TimeLimit,
)
_HARMLESS_VECTORS = (
    gym.vector.VectorWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
    vector.DictInfoToList,
    vector.HumanRendering,
    vector.NormalizeObservation,
    vector.RecordEpisodeStatistics,
    vector.RecordVideo,
)
_STEPS = {kind.step for kind in _HARMLESS}
_VECTOR_STEPS = {kind.step for kind in _HARMLESS_VECTORS}


def inside(wrapper: Any) -> Iterator[Any]:
    """What is inside a wrapper of an environment, from the outside inwards."""
    while isinstance(wrapper, gym.Wrapper):
        wrapper = wrapper.env
        yield wrapper


def may_meddle(wrapper: Any) -> bool:
    """Whether a wrapper of one environment may make steps or change rewards."""
    return type(wrapper).step not in _STEPS


def vector_may_meddle(wrapper: Any) -> bool:
    """Whether a wrapper of a vector environment may make steps or change rewards."""
    return type(wrapper).step not in _VECTOR_STEPS
