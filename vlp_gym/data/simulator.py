"""What `vlp-gym collect` must know of a simulator; each simulator's own folder says it in its `simulator.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Simulator:
    """A simulator that rollouts are collected from.

    Attributes:
        packages: packages that it needs -> the extra of vlp_gym that installs them.
        config: dataclass of its settings, with defaults. Its fields are the options of `vlp-gym collect` that it takes,
            at least per_tier, tiers, stride, size and seed.
        steps: most environment steps of a rollout.
        task: the full name of a task, from what a user calls it; raises ValueError for an unknown one.
        collect: ``(folder, config, *, tasks, workers, ray)``, see `collect_shards`; tasks None: all.
    """

    packages: Mapping[str, str]
    config: type[Any]
    steps: int
    task: Callable[[str], str]
    collect: Callable[..., None]
