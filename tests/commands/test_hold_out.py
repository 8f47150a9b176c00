"""`vlp-gym train --hold-out`: what is not trained on is judged at the end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

from command_line import run
from rollouts import painted_tasks, write_tasks

from vlp_gym.training.hold_out import hold_out
from vlp_gym.training.recipes import staged

TASKS = ("fold the towel", "stack the cups")
SMALL = (
    "--split", "data", "--steps", 1, "--relevance-steps", 1, "--tasks-per-batch", 2, "--clips-per-task", 3,
    "--frames-per-clip", 2,
)  # fmt: skip


def test_the_report_is_about_what_was_held_out(tmp_path, monkeypatch, capsys):
    rollouts = [replace(t, sentences=(t.task,)) for t in painted_tasks(TASKS, each=2, size=32)]
    write_tasks(tmp_path / "data", rollouts)
    trained = []
    build = staged.StagedOptions.build
    monkeypatch.setattr(staged.StagedOptions, "build", lambda self, own: trained.extend(own) or build(self, own))
    out = tmp_path / "out"
    command = ("train", "staged", "--data", tmp_path / "data", *SMALL, "--out", out)
    assert run(*command, "--hold-out", 0.5) == 0
    _, held = hold_out(rollouts, 0.5, seed=0)
    assert len(held) == 6
    assert {t.name for t in trained} == {t.name for t in rollouts} - {t.name for t in held}
    result = json.loads((out / "held-out" / "results.json").read_text())
    assert result["tasks"] == list(TASKS)
    assert result["settings"]["model"] == str(out)
    shown = capsys.readouterr().out
    assert "6 episodes held out of training" in shown
    assert "to pay rewards" in shown  # the verdict
    assert run(*command) == 2
    assert "holds a run with other settings (then, now): {'hold_out': (0.5, 0.0)}" in capsys.readouterr().err
    assert run(*command[:-1], tmp_path / "all") == 0
    assert not (tmp_path / "all" / "held-out").exists()
    assert len(trained) >= len(rollouts)


@pytest.mark.parametrize("share", ["-0.1", "1", "nan"])
def test_errors(share, tmp_path, capsys):
    assert run("train", "staged", "--data", tmp_path, *SMALL, "--hold-out", share, "--out", tmp_path / "out") == 2
    assert "--hold-out: expected a share from 0 to less than 1, got " in capsys.readouterr().err


def test_training_stops_early(tmp_path, capsys):
    """Both stages keep the weights of their lowest held-out loss; a task that holds out no expert is refused."""
    rollouts = [replace(t, sentences=(t.task,)) for t in painted_tasks(TASKS, each=2, size=32)]
    write_tasks(tmp_path / "data", rollouts)
    steps = ("--steps", 4, "--relevance-steps", 2, "--save-every", 1, "--hold-out", 0.5, "--patience", 1)
    command = ("train", "staged", "--data", tmp_path / "data", *SMALL, *steps, "--learning-rate", 0.01)
    assert run(*command, "--out", tmp_path / "out") == 0
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert all("held_out" in row for row in history)
    shown = capsys.readouterr().out
    assert shown.count("the held-out loss was lowest after step ") == 2
    assert f"{4 - len([row for row in history if row['step'] < 4])} of 4 steps were left" in shown
    few = [t for t in rollouts if (t.task, t.tier) != (TASKS[0], "expert") or t.seed % 2]
    write_tasks(tmp_path / "few", few)
    assert run("train", "staged", "--data", tmp_path / "few", *SMALL, *steps, "--out", tmp_path / "none") == 2
    assert (
        "--patience: the 5 held-out episodes do not suffice to measure the loss (fold the towel: expected trajectories "
        "of every tier, found none of ['expert']); hold out more, or train without it"
    ) in capsys.readouterr().err
