"""`vlp-gym study` at tiny size: real trainings of two variants, gone on with, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

from command_line import run

from vlp_gym.models.vlp import VLPModel
from vlp_gym.training.recipes.vlp import VLPOptions

pytestmark = pytest.mark.usefixtures("two_training_tasks")


def test_train_judge_and_go_on(data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "study"
    study = f"study vlp-ablations --data {data} --out {out} --steps 1 --pairs 1 --pairs-per-task 4 --pairs-by rewards"
    study = study.split()
    built = []

    def build(self, rollouts):
        built.append(self)
        model = VLPModel("small", window=2, self_attention_layers=1, head=(8,), frame_size=32)
        return model, self.recipe_of(model, rollouts)

    monkeypatch.setattr(VLPOptions, "build", build)
    assert run(*study, "--variants", "full") == 0
    before = (out / "full-seed-0" / "model.safetensors").read_bytes()
    assert json.loads((out / "full-seed-0" / "report" / "results.json").read_text())["settings"]["pairs_per_task"] == 4

    built.clear()
    capsys.readouterr()
    assert run(*study, "--variants", "full", "no-ivp") == 0
    assert [(options.lambda_ilp, options.lambda_ivp, options.data_share) for options in built] == [(0.1, 0.0, 1.0)]
    assert (out / "full-seed-0" / "model.safetensors").read_bytes() == before
    shown = capsys.readouterr().out
    assert shown.startswith("# VLP's ablations\n")
    assert shown.splitlines()[-1] == f"result: {out / 'result.json'} {out / 'result.md'}"
    assert (out / "result.md").read_text() in shown
    result = json.loads((out / "result.json").read_text())
    assert [(each["variant"], each["seed"]) for each in result["judged"]] == [("full", 0), ("no-ivp", 0)]
    figures = [each["figures"] for each in result["judged"]]
    assert all(0 <= each["itp"] <= 100 and 0 <= each["ivp"] <= 100 for each in figures)
    report = json.loads((out / "no-ivp-seed-0" / "report" / "results.json").read_text())
    assert figures[1]["itp"] == pytest.approx(100 * report["mean"]["itp_scripted"])
    losses = [report["mean"][name] for name in ("itp_scripted_loss", "ivp_loss", "ilp_loss")]
    assert figures[1]["average"] == pytest.approx(sum(losses) / 3)

    capsys.readouterr()
    assert run(*study, "--variants", "full", "--steps", "2") == 2
    said = f"error: {out}/full-seed-0/judged.json: it was made with steps 1, not 2; choose another --out"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variants", "ful"), r"--variants: expected some of no-ilp, .*, full, got ful; did you mean full\?"),
        (("--seeds",), r"--seeds: expected at least one, got none"),
        (("--pairs-per-task", "0"), r"--pairs-per-task: expected at least 1, got 0"),
        (("--pairs", "0"), r"--pairs: expected at least 1, got 0"),
        (("--token-files", "x"), r"--token-files: expected a frozen backbone, such as open_clip:.*"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(options, message, data, tmp_path, capsys):
    assert run("study", "vlp-ablations", "--data", data, "--out", tmp_path / "study", *options) == 2
    assert re.fullmatch(rf"vlp-gym: error: {message}\n", capsys.readouterr().err)
    assert not (tmp_path / "study").exists()
