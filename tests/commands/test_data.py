"""The rollouts that commands read: those of older versions, and those of tasks that no simulator knows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

from command_line import run
from rollouts import painted, painted_tasks, write_tasks, write_version_1
from tiny import tiny_model

from vlp_gym.commands.data import judged_tasks, load, training_tasks
from vlp_gym.data.shards import shard_path
from vlp_gym.errors import DatasetError
from vlp_gym.maniskill.tasks import TEST, TRAIN
from vlp_gym.metaworld import splits
from vlp_gym.metaworld.instructions import instructions_for

TASKS = ("fold the towel", "stack the cups")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Rollouts of two tasks, each named by its one sentence."""
    folder = tmp_path_factory.mktemp("other")
    write_tasks(folder, [replace(t, sentences=(t.task,)) for t in painted_tasks(TASKS, each=2, size=112)])
    return folder


def test_the_book_says_what_a_shard_does_not(tmp_path):
    for task in TASKS:
        write_version_1([painted(task, "expert")], shard_path(tmp_path, task, "expert"))
    write_version_1([painted("push-v3", "expert")], shard_path(tmp_path, "push-v3", "expert"))
    read = {trajectory.task: trajectory for trajectory in load(tmp_path)}
    assert [*read["push-v3"].sentences, *read["push-v3"].held_out] == instructions_for("push-v3")
    assert read["push-v3"].opposite == "push-back-v3"
    assert [read[task].sentences for task in TASKS] == [(), ()]


def test_a_tasks_version_may_be_left_out(tmp_path, other):
    write_tasks(tmp_path, [painted("push-v3", "expert"), painted("push-back-v3", "expert")])
    for name in ("push", "push-v3"):
        assert [t.task for t in load(tmp_path, tasks=[name])] == ["push-v3"]
    assert {t.task for t in load(other, tasks=[TASKS[1]])} == {TASKS[1]}
    with pytest.raises(DatasetError) as caught:
        load(other, tasks=["fold the shirt"])
    assert str(caught.value) == f"{other}: no trajectories of fold the shirt; run vlp-gym collect with --tasks"


def test_tasks_of_a_split(other):
    assert training_tasks("data", [other]) == judged_tasks("data", other) == TASKS
    for split in ("vlp", "ml45", "rewind", "all"):
        assert training_tasks(split, [other]) == splits.train_tasks(split)
        assert judged_tasks(split, other) == splits.judged_tasks(split)
    assert training_tasks("maniskill", [other]) == tuple(TRAIN)
    assert judged_tasks("maniskill", other) == tuple(TEST)


def test_train_evaluate_calibrate_and_score_on_data_of_ones_own(other, tmp_path, capsys):
    settings = ("--relevance-steps", "1", "--tasks-per-batch", "2", "--clips-per-task", "3")
    trained = tmp_path / "trained"
    assert run("train", "staged", "--data", other, "--split", "data", "--steps", "1", "--out", trained, *settings) == 0
    assert (trained / "model.safetensors").exists()

    model, report, scores = tmp_path / "tiny", tmp_path / "report", tmp_path / "scores"
    tiny_model().save_pretrained(model)
    evaluate = ("eval", "--model", model, "--data", other, "--split", "data", "--out", report, "--pairs-per-task", "5")
    assert run(*evaluate) == 0
    result = json.loads((report / "results.json").read_text())
    assert result["tasks"] == list(TASKS)
    assert result["mean"]["itp_tier"] is not None
    assert result["mean"]["itp_tier_held_out"] is result["mean"]["ivp_sibling"] is None
    assert run(*evaluate, "--tasks", TASKS[1]) == 0
    alone = json.loads((report / "results.json").read_text())
    assert (alone["tasks"], alone["per_task"].keys()) == ([TASKS[1]], {TASKS[1]})
    capsys.readouterr()
    assert run(*evaluate, "--tasks", TASKS[1], "dance") == 2
    assert capsys.readouterr().err.endswith("--tasks: expected tasks that split data judges, got dance\n")

    assert run("score", "--dataset", other, "--tasks", TASKS[0], "--model", model, "--out", scores) == 0
    videos = json.loads((scores / "scores.json").read_text())["videos"]
    assert {row["instruction"] for row in videos} == {TASKS[0]}

    both = "ensemble:mean|vlp-compact|vlp-compact-45"
    assert run("calibrate", both, "--data", other, "--tasks", TASKS[1], "--out", tmp_path / "both") == 0
    assert (tmp_path / "both" / "config.json").exists()
    capsys.readouterr()


def test_data_without_sentences(tmp_path, capsys):
    write_tasks(tmp_path, painted_tasks(TASKS, each=1, size=32))
    model = tmp_path / "tiny"
    tiny_model().save_pretrained(model)
    message = (
        "vlp-gym: error: task fold the towel, expert, seed 0: expected sentences that say what the task is, found "
        "none; set `Trajectory.sentences`, the canonical one first"
    )
    for command in (("train", "staged", "--tasks-per-batch", "2"), ("eval", "--model", model)):
        assert run(*command, "--data", tmp_path, "--split", "data", "--out", tmp_path / command[0]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == message


def test_a_data_set_that_the_model_does_not_know(tmp_path, capsys):
    write_tasks(tmp_path / "data", painted_tasks(["push-v3"], each=1, size=32))
    assert run("score", "--dataset", tmp_path / "data", "--model", "vlp-compact", "--out", tmp_path / "out") == 0
    assert (
        f"{tmp_path / 'data'}: the reward model does not know such pictures: they are up to " in capsys.readouterr().err
    )
    rows = json.loads((tmp_path / "out" / "scores.json").read_text())["videos"]
    assert len(rows) == 3
    assert all(row["novelty"] > 2.5 for row in rows)
