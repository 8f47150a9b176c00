"""The example runs as a user would run it, only shorter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "sac_button_press.py"
SHORT = ["--steps", "24", "--eval-every", "12", "--eval-episodes", "1", "--episode-steps", "12"]


@pytest.fixture(scope="module")
def compact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from vlp_gym.models.checkpoint import save_checkpoint
    from vlp_gym.models.compact import CompactRewardModel

    torch.manual_seed(0)
    return save_checkpoint(CompactRewardModel(image_size=32, channels=16, hidden=16), tmp_path_factory.mktemp("model"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_that_it_promises_is_there(compact_folder, tmp_path):
    done = run(*SHORT, "--model", compact_folder, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("reward_curves.png", "learning_curve.png", "final_policy.mp4", "policy.zip"):
        assert (tmp_path / name).stat().st_size > 1_000, name
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["step"] for row in result["history"]] == [12, 24]
    assert result["success"] == result["history"][-1]["success"]
    assert result["options"]["model"] == str(compact_folder)


def test_help_says_what_there_is():
    done = run("--help")
    assert done.returncode == 0
    for option in ("--task", "--instruction", "--model", "--steps", "--seed", "--control"):
        assert option in done.stdout


def test_an_unknown_model_is_named(tmp_path):
    done = run(*SHORT, "--model", "vlp-compakt", "--out", tmp_path)
    assert done.returncode != 0
    assert "vlp-compact" in done.stderr
