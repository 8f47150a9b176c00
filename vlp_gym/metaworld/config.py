"""The settings of `vlp-gym collect metaworld`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from vlp_gym.data.trajectory import TIERS
from vlp_gym.metaworld.env import CAMERA


@dataclass(frozen=True)
class CollectConfig:
    """Settings of a collection, stored beside the shards; a resumed run must have the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # what is not known here may change the rollouts

    per_tier: int = 32
    tiers: tuple[str, ...] = TIERS
    near_miss: int = 0
    explore: int = 0
    retreat: int = 0
    apart: int = 0
    either_way: int = 0
    agent: int = 0
    agent_model: str = "vlp-compact"
    stride: int = 5
    size: int = 112
    camera: str = CAMERA
    varied_share: float = 0.0
    random_start: bool = False
    seed: int = 0
