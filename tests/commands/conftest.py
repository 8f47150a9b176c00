"""What the tests of all commands share."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import SIBLING, TRAIN_TASKS
from rollouts import painted, painted_tasks, write_tasks
from tiny import tiny_model

from vlp_gym.data.trajectory import TIERS
from vlp_gym.metaworld import splits
from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.video import overlay_video


@pytest.fixture(autouse=True)
def _warnings(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # `main` sets it; so it is put back


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def two_training_tasks(monkeypatch):
    """Only two tasks have to be collected to train."""
    monkeypatch.setattr(splits, "train_tasks", lambda split: TRAIN_TASKS if split == "vlp" else None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rollouts of two training tasks, of the five test tasks and of one sibling."""
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, painted_tasks(TRAIN_TASKS, each=1, size=112))
    write_tasks(folder, [painted(t, tier, k) for t in (*TEST_TASKS, SIBLING) for k, tier in enumerate(TIERS)])
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    overlay_video(painted("push-v3", "expert", frames=9, size=32).frames, np.arange(9), path, height=64)
    return path
