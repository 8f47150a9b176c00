"""`--instructions` of eval and train: the sentences of a file, and VLP's table 12."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

import tiny_clip
from command_line import TRAIN_TASKS, run

from vlp_gym.metaworld.published import VLP_TABLE_12
from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.models.vlm_rm import VLMRMModel


def test_table_12_gives_vlm_rm_a_baseline_for_each_task(data, tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    monkeypatch.setitem(tiny_clip.TEXT, "context_length", 77)
    tiny_clip.add_mini_clips(tmp_path)
    asked = {}
    encode = VLMRMModel.encode_text

    def recorded(self, instructions):
        asked.update({said: self.baselines.get(said) for said in instructions})
        return encode(self, instructions)

    monkeypatch.setattr(VLMRMModel, "encode_text", recorded)
    judge = ("eval", "--model", "vlm-rm:mini-vit?alpha=1", "--data", data, "--pairs-per-task", "3", "--out", tmp_path)
    assert run(*judge, "--instructions", "vlp-table-12") == 0
    assert VLP_TABLE_12.keys() == set(TEST_TASKS)
    for said, baseline in VLP_TABLE_12.values():
        assert asked[said] == baseline
    assert json.loads((tmp_path / "results.json").read_text())["mean"]["itp_scripted"] is not None


def test_train_takes_the_sentences(data, tmp_path, two_training_tasks, monkeypatch, capsys):
    from vlp_gym.training import loop

    recipes = []
    monkeypatch.setattr(loop, "train", lambda model, recipe, *_, **__: recipes.append(recipe))
    path = tmp_path / "mine.json"
    tasks = {task: {"sentences": [f"do {task}", f"try {task}"]} for task in TRAIN_TASKS}
    path.write_text(json.dumps({"format": 1, "source": "by hand", "tasks": tasks}))
    train = ("train", "vlp", "--backbone", "small", "--data", data, "--out", tmp_path / "run")
    assert run(*train, "--instructions", path) == 0
    assert recipes[0].sentences == {task: tuple(own["sentences"]) for task, own in tasks.items()}

    path.write_text(json.dumps({"format": 1, "source": "by hand", "tasks": {"fold": {"sentences": ["fold it"]}}}))
    assert run(*train, "--instructions", path) == 2
    assert capsys.readouterr().err.endswith(
        f"vlp-gym: error: --instructions: expected sentences for tasks of {data}, got some for fold\n"
    )


def test_pairs_by_states_needs_states(data, model, tmp_path, capsys):
    judge = ("eval", "--model", model, "--data", data, "--out", tmp_path, "--pairs-per-task", "3")
    assert run(*judge, "--pairs-by", "states") == 2
    assert "expected states and actions, which k-means is to see, found none" in capsys.readouterr().err
