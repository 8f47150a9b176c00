"""Meta-World for `vlp-gym collect`."""

from __future__ import annotations

from vlp_gym.data.simulator import Simulator
from vlp_gym.metaworld.collect import MAX_STEPS, collect_metaworld
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.splits import known_task

SIMULATOR = Simulator(
    packages={"metaworld": "metaworld", "mujoco": "metaworld"},
    config=CollectConfig,
    steps=MAX_STEPS,
    task=known_task,
    collect=collect_metaworld,
)
