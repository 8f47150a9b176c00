"""Training, evaluation and calibration from end to end, on painted rollouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import TRAIN_TASKS, run

from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.models import registry

pytestmark = pytest.mark.usefixtures("two_training_tasks")


class TestTrainAndEvaluate:
    TWO = ("--tasks-per-batch", "2")
    SETTINGS = ("--relevance-steps", "1", *TWO, "--clips-per-task", "3", "--save-every", "1")

    def test_train_resume_evaluate(self, data, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        train = ("train", "staged", "--data", data, "--split", "vlp", "--steps", "2", "--seed", "3", *self.SETTINGS)
        assert run(*train) == 0
        out = Path("runs/staged-vlp")
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            f"checkpoint: {out}",
            f"evaluate it: vlp-gym eval --model {out} --data {data} --split vlp",
        ]
        names = {path.name for path in out.iterdir()}
        assert names >= {"config.json", "model.safetensors", "training.json", "history.json", "training.png"}
        before = (out / "model.safetensors").read_bytes()
        assert run(*train) == 0
        assert (out / "model.safetensors").read_bytes() == before

        capsys.readouterr()
        assert run(*lines[1].removeprefix("evaluate it: vlp-gym ").split(), "--pairs-per-task", "5") == 0
        shown = capsys.readouterr().out
        report = Path("runs/eval/staged-vlp-vlp")
        assert shown.startswith(f"# Evaluation of {out} on vlp\n")
        assert "| ITP, scripted labels |" in shown
        result = json.loads((report / "results.json").read_text())
        assert result["tasks"] == list(TEST_TASKS)
        assert result["settings"]["pairs_per_task"] == 5
        assert result["per_task"]["door-close-v3"]["ivp_sibling"] is not None  # the sibling's rollouts were found
        assert result["per_task"]["drawer-close-v3"]["ivp_sibling"] is None  # and these are not there
        assert shown.splitlines()[-1] == "report: " + " ".join(
            str(report / name) for name in ("results.json", "results.md", "results.png")
        )

    @pytest.mark.parametrize(
        ("options", "read"),
        [
            ((), TRAIN_TASKS),
            (("--leave-out", TRAIN_TASKS[0]), TRAIN_TASKS[1:]),
            (("--tasks", *TRAIN_TASKS), TRAIN_TASKS),
            (("--tasks", TRAIN_TASKS[0]), TRAIN_TASKS[:1]),
        ],
    )
    def test_only_training_tasks_are_read(self, data, tmp_path, monkeypatch, options, read):
        from vlp_gym.training import loop

        seen = []
        monkeypatch.setattr(
            loop, "train", lambda model, recipe, out, config, **_: seen.extend(recipe.settings["tasks"])
        )
        assert run("train", "embedding", "--data", data, "--out", tmp_path / "run", *options) == 0
        assert seen == sorted(read)

    def test_the_seed_decides_the_weights(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        first = []
        monkeypatch.setattr(
            loop, "train", lambda model, *_, **__: first.append(float(sum(p.sum() for p in model.parameters())))
        )
        for seed in (1, 2, 1):
            assert run("train", "joint", "--data", data, "--out", tmp_path, "--seed", seed, *self.TWO) == 0
        assert first[0] == first[2] != first[1]

    def test_init_starts_from_another_models_weights(self, data, model, tmp_path, monkeypatch, capsys):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_, **__: made.append(model))
        train = ("train", "staged", "--data", data, "--out", tmp_path, *self.TWO)
        assert run(*train, "--init", "vlp-compact-45") == 0
        shipped = registry.load_reward_model("vlp-compact-45").state_dict()
        assert all(torch.equal(value, shipped[name]) for name, value in made[0].state_dict().items())
        assert run(*train, "--init", model) == 2
        assert f"--init: expected a model of this architecture and size; {model} differs" in capsys.readouterr().err

    def test_init_of_another_system_gives_its_encoders(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_, **__: made.append(model))
        options = ("--backbone", "small", "--init", "vlp-compact-45", "--out", tmp_path)
        assert run("train", "rewind", "--data", data, *options) == 0
        shipped = registry.load_reward_model("vlp-compact-45").backbone.state_dict()
        assert all(torch.equal(value, shipped[name]) for name, value in made[0].backbone.encoders.state_dict().items())
        assert not made[0].backbone.frozen
        assert run("train", "rewind", "--data", data, *options, "--freeze-encoders") == 0
        assert made[1].backbone.frozen

    def test_freezing_needs_encoders_that_know_something(self, data, tmp_path, capsys):
        for options in (("--backbone", "small"), ("--init", "vlp-compact-45")):
            assert run("train", "rewind", "--data", data, "--out", tmp_path, "--freeze-encoders", *options) == 2
            assert "--freeze-encoders: expected with rewind, --backbone small and --init" in capsys.readouterr().err

    def test_the_recipe_gets_the_uneven_share(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, recipe, *_, **__: made.append(recipe))
        assert run("train", "rewind", "--data", data, "--backbone", "small", "--uneven", "0.25", "--out", tmp_path) == 0
        assert made[0].settings["p_uneven"] == 0.25

    def test_no_joint_steps_train_the_relevance_of_another_model_alone(self, data, tmp_path):
        alone = ("--init", "vlp-compact", "--steps", "0", *self.SETTINGS)
        assert run("train", "staged", "--data", data, "--out", tmp_path, *alone) == 0
        shipped, made = (registry.load_reward_model(name) for name in ("vlp-compact", str(tmp_path)))
        trained = {id(parameter) for parameter in made.relevance_parameters()}
        changed = {
            id(parameter) in trained
            for name, parameter in made.named_parameters()
            if not torch.equal(parameter, shipped.state_dict()[name])
        }
        assert changed == {True}

    def test_architectures(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_, **__: made.append(model))
        assert run("train", "joint", "--data", data, "--out", tmp_path, *self.TWO) == 0
        name = "open_clip:convnext_no_such"
        assert run("train", "vlp", "--data", data, "--out", tmp_path, "--backbone", name) == 2
        assert made[0].config["backbone"] == "small"
        assert len(made) == 1


@pytest.mark.parametrize(("system", "size"), [("rewind", 2), ("embedding", 4)])
def test_other_systems_train_and_are_judged(data, tmp_path, capsys, system, size):
    out = tmp_path / "run"
    options = ["--backbone", "small"] if system == "rewind" else ["--objective", "r3m"]
    settings = ("--steps", "2", "--batch-size", size, "--out", out)
    assert run("train", system, "--data", data, *settings, *options) == 0
    assert run(*capsys.readouterr().out.splitlines()[-1].split()[3:], "--out", tmp_path, "--pairs-per-task", "5") == 0
    assert json.loads((tmp_path / "results.json").read_text())["mean"]["voc_expert_spearman"] is not None
    assert json.loads((out / "config.json").read_text())["model_type"] == system


def test_an_ensemble_is_calibrated_and_scores_a_dataset(data, model, tmp_path, capsys):
    name = f"ensemble:min|{model}|vlp-compact"
    assert run("calibrate", name, "--data", data, "--tasks", TRAIN_TASKS[0], "--out", tmp_path / "both") == 0
    tasks = [task.removesuffix("-v3") for task in TRAIN_TASKS]
    scores = ("--model", tmp_path / "both", "--out", tmp_path / "scores", "--tasks", *tasks)
    assert run("score", "--dataset", data, *scores) == 0
    assert (tmp_path / "scores" / "scores.md").read_text().split("\n\n", 1)[1].strip() in capsys.readouterr().out
    videos = json.loads((tmp_path / "scores" / "scores.json").read_text())["videos"]
    assert {row["task"] for row in videos} == set(TRAIN_TASKS)
    for row in videos:
        asked_about = row["value"][1:]  # without the first frame
        assert row["detected"] == (spearmanr(asked_about, range(len(asked_about)))[0] >= 0.5)
        np.testing.assert_allclose(row["weight"], np.exp(np.diff(row["value"])))
        assert row["success"] == (row["tier"] == "expert")
    assert (tmp_path / "scores" / "scores.png").stat().st_size > 10_000
