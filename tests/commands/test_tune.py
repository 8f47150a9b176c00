"""`vlp-gym tune` on painted rollouts."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import run

from vlp_gym.data.shards import shard_path
from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.models import registry

pytestmark = pytest.mark.usefixtures("two_training_tasks")


def test_tune(data, model, capsys):
    """On two tasks that are not among the training's; what it chooses are options of `train`."""
    assert run("tune", "--model", model, "--data", data, "--tasks", *TEST_TASKS[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = np.array([line.split() for line in lines[1:-1]], float)  # base, ITP, IVP
    best = rows[np.argmax(rows[:, 1] + rows[:, 2]), 0]
    found = re.fullmatch(r"--base (\S+) --sharpness \S+ --relevance-shift (-?\d+\.\d+)", lines[-1])
    assert float(found[1]) == best
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()


def test_tune_needs_every_tier(data, model, tmp_path, capsys):
    lacking = shutil.copytree(data, tmp_path / "lacking")
    shard_path(lacking, TEST_TASKS[1], "medium").unlink()
    assert run("tune", "--model", model, "--data", lacking, "--tasks", *TEST_TASKS[:2]) == 2
    expected = f"expected trajectories of every tier of every validation task, found none of ['{TEST_TASKS[1]} medium']"
    assert expected in capsys.readouterr().err


def test_tune_another_model(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "load_reward_model", lambda name: torch.nn.Linear(1, 1))
    assert run("tune", "--model", tmp_path, "--data", data, "--tasks", *TEST_TASKS[:2]) == 2
    assert f"--model: expected a staged model, got a Linear in {tmp_path}" in capsys.readouterr().err
