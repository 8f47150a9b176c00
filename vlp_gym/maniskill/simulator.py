"""ManiSkill 3 for `vlp-gym collect`."""

from __future__ import annotations

from vlp_gym.data.simulator import Simulator
from vlp_gym.maniskill.collect import MAX_STEPS, ManiSkillConfig, collect_maniskill
from vlp_gym.maniskill.tasks import maniskill_task

SIMULATOR = Simulator(
    packages={"mani_skill": "maniskill", "mplib": "maniskill"},
    config=ManiSkillConfig,
    steps=MAX_STEPS,
    task=maniskill_task,
    collect=collect_maniskill,
)
