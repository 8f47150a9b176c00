"""Gymnasium-Robotics' Fetch tasks for `vlp-gym collect`."""

from __future__ import annotations

from vlp_gym.data.simulator import Simulator
from vlp_gym.fetch.collect import FetchConfig, collect_fetch
from vlp_gym.fetch.env import EPISODE_STEPS, fetch_task

SIMULATOR = Simulator(
    packages={"gymnasium_robotics": "fetch", "mujoco": "fetch"},
    config=FetchConfig,
    steps=EPISODE_STEPS,
    task=fetch_task,
    collect=collect_fetch,
)
