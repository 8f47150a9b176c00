"""`vlp-gym push`: a model goes to the hub with a card, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from command_line import run
from rollouts import painted_tasks
from tiny import tiny_model

from tests.hub_server import HubServer
from vlp_gym.evaluation.card import Made, read_made, write_made
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.evaluation.report import FIGURES, write_report
from vlp_gym.models.registry import load_reward_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model with the report of its evaluation, and how it was made."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    torch.manual_seed(0)
    model = tiny_model().eval()
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    (folder / "training.safetensors").write_bytes(b"the saved state")
    rollouts = painted_tasks(["push-v3", "reach-v3"], each=2, size=32)
    tasks = sorted({trajectory.task for trajectory in rollouts})
    result = evaluate(model, rollouts, tasks=tasks, split_name="data", seed=0, device="cpu", pairs_per_task=5)
    result["settings"]["model"] = str(folder)
    write_report(result, folder / "held-out")
    arguments = ["staged", "--data", "/home/me/secret/train", "--out", "runs/tiny"]
    write_made(folder, arguments, [Path("/home/me/secret/train")], 1234, ["reach-v3", "push-v3", "push-v3"])
    return folder


def error(capsys, *arguments) -> str:
    assert run("push", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removeprefix("vlp-gym: error: ").rstrip("\n")


def card_of(folder: Path) -> tuple[dict, str]:
    _, fields, text = (folder / "card.md").read_text().split("---\n", 2)
    return yaml.safe_load(fields), text


def test_a_dry_run_writes_the_card_and_lists_the_files(trained, capsys):
    command = ("push", trained, "me/tiny", "--license", "apache-2.0", "--datasets", "me/rollouts", "--dry-run")
    assert run(*command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["config.json", "model.safetensors", "README.md", "results.json"]
    assert int(lines[1].split()[1].replace(",", "")) == (trained / "model.safetensors").stat().st_size
    assert lines[-1] == f"nothing was uploaded; the card: {trained / 'card.md'}"
    fields, text = card_of(trained)
    figures = fields.pop("model-index")
    assert fields == {
        "license": "apache-2.0",
        "library_name": "vlp_gym",
        "pipeline_tag": "robotics",
        "tags": ["reward-model", "robotics", "reinforcement-learning", "vision-language", "staged"],
        "datasets": ["me/rollouts"],
    }
    mean = json.loads((trained / "held-out/results.json").read_text())["mean"]
    (model,) = figures
    assert model["name"] == "me/tiny"
    shown = {metric["type"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    known = {name for titles in FIGURES.values() for name in titles if mean[name] is not None}
    assert shown == {name: mean[name] for name in known}
    assert {"control_frozen", "control_wrong_instruction", "itp_scripted_pixel"} <= known  # with controls and baselines
    assert "vlp-gym train staged --data train --out runs/tiny" in text
    assert "- Data: train: 1,234 rollouts of 2 tasks (push, reach)" in text
    assert 'VLPRewardWrapper(env, "press the button", "me/tiny")' in text
    assert "secret" not in text
    for heading in ("## Training", "## Figures", "## Limits", "| Bias controls |", "fit to pay rewards"):
        assert heading in text


def pushed(hub: HubServer, *arguments) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "vlp_gym.commands.main", "push", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=100)


def test_what_is_on_the_hub_loads_and_nothing_else_is_there(trained, tmp_path):
    with HubServer() as hub:
        done = pushed(hub, trained, "me/tiny", "--license", "mit", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"uploaded: {hub.url}/me/tiny"
    (created,) = hub.created
    assert (created["name"], created["organization"]) == ("tiny", "me")
    assert created.get("private") or created.get("visibility") == "private"  # older and newer versions
    (files,) = hub.commits
    assert set(files) == {"config.json", "model.safetensors", "README.md", "results.json"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ours, theirs = (load_reward_model(folder).state_dict() for folder in (trained, tmp_path))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert b"\nlicense: mit\n" in files["README.md"]
    assert not (tmp_path / "card.md").exists()


def test_a_hub_that_refuses(trained):
    with HubServer() as hub:
        hub.status = 403
        done = pushed(hub, trained, "me/tiny", "--license", "mit")
    assert done.returncode == 2
    assert hub.commits == []
    assert done.stderr.startswith("vlp-gym: error: me/tiny: the hub did not take the model (")
    assert done.stderr.endswith("); log in with hf auth login, and see whether you may write there\n")
    assert "hf_test" not in done.stderr


def test_own_words_in_the_card(trained, tmp_path, capsys):
    own = tmp_path / "own.md"
    own.write_text("---\nlicense: mit\n---\nMy words.\n")
    assert run("push", trained, "me/tiny", "--license", "mit", "--card", own, "--dry-run") == 0
    assert (trained / "card.md").read_text() == own.read_text()
    capsys.readouterr()
    line = error(capsys, trained, "me/tiny", "--license", "apache-2.0", "--card", own, "--dry-run")
    assert line == f"--card: expected a card that begins with --- and has license: apache-2.0, got {own}"


def test_without_figures_it_is_said(trained, capsys, tmp_path):
    line = error(capsys, trained, "me/tiny", "--license", "mit", "--report", tmp_path)
    assert line == (
        f"--report: expected a folder with results.json, got {tmp_path}; run vlp-gym eval --model {trained}, or give "
        "--no-figures"
    )
    assert run("push", trained, "me/tiny", "--license", "mit", "--no-figures", "--dry-run") == 0
    fields, text = card_of(trained)
    assert "model-index" not in fields
    assert "nobody can say whether it is fit to pay rewards" in text
    assert "results.json" not in capsys.readouterr().out


def test_figures_of_another_model_are_refused(trained, capsys, tmp_path):
    result = json.loads((trained / "held-out/results.json").read_text())
    result["settings"]["model"] = "runs/other"
    (tmp_path / "results.json").write_text(json.dumps(result))
    line = error(capsys, trained, "me/tiny", "--license", "mit", "--report", tmp_path)
    assert line == f"{tmp_path}/results.json: expected figures of tiny, got those of runs/other"
    (tmp_path / "results.json").write_text("[1]")
    line = error(capsys, trained, "me/tiny", "--license", "mit", "--report", tmp_path)
    assert line.startswith(f"{tmp_path}/results.json: expected the results of vlp-gym eval, got other JSON (")


def test_what_is_no_model_is_refused(trained, capsys, tmp_path):
    assert error(capsys, tmp_path, "me/tiny", "--license", "mit").startswith(f"{tmp_path}")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "model.safetensors" in error(capsys, tmp_path, "me/tiny", "--license", "mit", "--no-figures")
    assert not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--license", "mit"], "expected org/name, got 'tiny'"),
        (["me/tiny", "--license", "mit", "--datasets", "data/../train"], "expected org/name, got 'data/../train'"),
        (
            ["me/tiny", "--license", "My own: no use"],
            '--license: expected a name as on the hub, such as "mit" or "other", got \'My own: no use\'',
        ),
    ],
)
def test_names_that_the_hub_does_not_take(trained, capsys, arguments, message):
    assert error(capsys, trained, *arguments) == message


def test_a_training_says_how_it_was_made(tmp_path):
    assert read_made(tmp_path) is None
    write_made(tmp_path, ["staged", "--data", "a b"], [Path("a b")], 3, ["push-v3"])
    assert read_made(tmp_path) == Made(
        command="vlp-gym train staged --data 'a b'", data=["a b"], rollouts=3, tasks=["push-v3"]
    )
