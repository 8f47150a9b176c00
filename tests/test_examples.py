"""The examples run as a user would run them, only shorter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = ["--steps", "24", "--eval-every", "12", "--eval-episodes", "1", "--episode-steps", "12"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from vlp_gym.models.checkpoint import save_checkpoint
    from vlp_gym.models.staged import StagedRewardModel

    torch.manual_seed(0)
    return save_checkpoint(StagedRewardModel(image_size=32, channels=16, hidden=16), tmp_path_factory.mktemp("model"))


def run(*arguments: object, example: str = "sac_button_press") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=580)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_that_it_promises_is_there(model_folder, tmp_path):
    done = run(*SHORT, "--model", model_folder, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("reward_curves.png", "learning_curve.png", "final_policy.mp4", "policy.zip"):
        assert (tmp_path / name).stat().st_size > 1_000, name
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["step"] for row in result["history"]] == [12, 24]
    assert result["success"] == result["history"][-1]["success"]
    assert result["options"]["model"] == str(model_folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("example", "options", "policy"),
    [
        ("custom_loop", ["--steps", 40, "--learning-starts", 20, "--eval-every", 20], "policy.safetensors"),
        ("ppo_vector", ["--steps", 80, "--rollout", 40, "--eval-every", 1], "policy.zip"),
    ],
)
def test_the_other_examples(example, options, policy, model_folder, tmp_path):
    done = run(*options, "--eval-episodes", 1, "--model", model_folder, "--out", tmp_path, example=example)
    assert done.returncode == 0, done.stderr
    for name in ("learning_curve.png", policy):
        assert (tmp_path / name).stat().st_size > 1_000, name
    assert json.loads((tmp_path / "result.json").read_text())["history"][-1]["step"] == options[1]
    assert list((tmp_path / "tensorboard").rglob("events*"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pebble_stops_and_goes_on(model_folder, tmp_path):
    few = ["--queries.explore", 10, "--queries.every", 15, "--queries.session", 4, "--queries.length", 4]
    short = ["--learning-starts", 20, *few, "--eval-every", 30, "--eval-episodes", 1, "--episode-steps", 12]
    run_once = [*short, "--labels", "vlp", "--kind", "preference", "--model", model_folder, "--out", tmp_path]
    done = run("--steps", 60, *run_once, example="pebble_button_press")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "result.json").read_text())
    assert [session["step"] for session in first["sessions"]] == [30, 45, 60]
    for name in ("learning_curve.png", "final_policy.mp4", "policy.zip"):
        assert (tmp_path / name).stat().st_size > 1_000, name
    done = run("--steps", 90, "--resume", *run_once, example="pebble_button_press")
    assert done.returncode == 0, done.stderr
    second = json.loads((tmp_path / "result.json").read_text())
    assert [row["step"] for row in second["history"]] == [30, 60, 90]
    assert [session["step"] for session in second["sessions"]] == [30, 45, 60, 75, 90]
    assert second["sessions"][:3] == first["sessions"]
    assert second["labels"] == 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_own_videos(tmp_path):
    """From recording to the agent; the videos are what the report is about."""
    pytest.importorskip("gymnasium_robotics")
    few = ["--videos", 2, "--train-steps", 2, "--patience", 1, "--steps", 24, "--eval-every", 12, "--eval-episodes", 1]
    done = run(*few, "--task", "FetchReach", "--instruction", "poke it", "--out", tmp_path, example="own_videos")
    assert done.returncode == 0, done.stderr
    for name in (
        "examples.png",
        "learning_curve.png",
        "policy.zip",
        "model/held-out/results.png",
        "model/training.png",
    ):
        assert (tmp_path / name).stat().st_size > 1_000, name
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 16  # of two tasks and four tiers
    report = json.loads((tmp_path / "model" / "held-out" / "results.json").read_text())
    assert report["tasks"] == ["FetchPush", "FetchReach"]
    assert "$ vlp-gym train staged --init vlp-compact " in done.stdout
    history = json.loads((tmp_path / "result.json").read_text())["history"]
    assert [row["step"] for row in history] == [12, 24]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.rollouts import painted_tasks, with_steps, write_tasks

    folder = tmp_path_factory.mktemp("rollouts")
    tasks = ["push-v3", "reach-v3", "plate-slide-v3"]
    write_tasks(folder, [with_steps(rollout) for rollout in painted_tasks(tasks, each=1, size=32)])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("start", "old"), [("offline", "half"), ("scratch", "none")])
def test_an_unseen_task(start, old, model_folder, rollouts, tmp_path):
    short = ["--episode-steps", 20, "--eval-episodes", 1, "--eval-every", 12, "--steps", 24, "--warmup", 8]
    offline = ["--data", rollouts, "--offline-steps", 30, "--per-tier", 1, "--start", start, "--old", old]
    task = ["--task", "plate-slide", "--instruction", "slide the plate into the goal", "--seed", 1]
    command = [*task, *short, *offline, "--model", model_folder, "--out", tmp_path]
    done = run(*command, example="unseen_task")
    assert done.returncode == 0, done.stderr
    for name in ("reward_curves.png", "learning_curve.png", "final_policy.mp4", "policy.zip"):
        assert (tmp_path / name).stat().st_size > 1_000, name
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["step"] for row in result["history"]] == [0, 12, 24]
    assert (result["before"], result["success"]) == tuple(result["history"][row]["success"] for row in (0, -1))
    assert (tmp_path / "offline" / "policy.safetensors").exists() == (start == "offline")
    if start == "offline":  # six rollouts of the other two tasks, of 16 or 17 frames
        assert "decisions of 6 rollouts of 2 tasks" in done.stdout
        wrong = run(*command, "--tasks", "plate-slide", example="unseen_task")
        message = "--tasks: expected training tasks of the data other than --task, got plate-slide-v3"
        assert wrong.stderr.splitlines()[-1] == message


def test_help_says_what_there_is():
    done = run("--help")
    assert done.returncode == 0
    for option in ("--task", "--instruction", "--model", "--steps", "--seed", "--control"):
        assert option in done.stdout


def test_an_unknown_model_is_named(tmp_path):
    done = run(*SHORT, "--model", "vlp-compakt", "--out", tmp_path)
    assert done.returncode != 0
    assert "vlp-compact" in done.stderr
