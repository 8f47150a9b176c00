"""`vlp-gym score --dataset` as GVL's tool, against an endpoint on this computer that answers from the pictures."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("tyro")
pytest.importorskip("openai")

from command_line import TRAIN_TASKS, run
from rollouts import painted, write_tasks

from vlp_gym.metaworld.instructions import instructions_for


@pytest.fixture
def sets(tmp_path):
    """Two small data sets of experts that grow brighter, all of them different."""
    for name, frames in (("long", 8), ("short", 6)):
        made = [painted(task, "expert", 2 * t + k, frames, 8) for t, task in enumerate(TRAIN_TASKS) for k in range(2)]
        write_tasks(tmp_path / name, made)
    return tmp_path / "long", tmp_path / "short"


@pytest.fixture
def gvl(server):
    return f"gvl:tiny?base_url={server.url}&cache=none"


def pictures(request):
    return sum(part["type"] == "image_url" for part in request["messages"][0]["content"])


def test_several_sets_are_ranked(sets, gvl, server, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("score", "--dataset", *sets, "--model", gvl, "--out", out, "--frames", "5", "--per-set", "3") == 0
    assert [pictures(request) for request in server.requests] == [5] * 6
    shown = capsys.readouterr().out
    assert "| data set | VOC, mean | deviation | videos |" in shown
    assert shown.splitlines()[-1] == f"written: {out / 'ranking.md'}"
    table = (out / "ranking.md").read_text()
    for folder in sets:
        assert f"| {folder} | 1.00 | 0.00 | 3 |" in table
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert all(len(json.loads((path / "scores.json").read_text())["videos"]) == 3 for path in folders)


def test_the_matrix_of_videos_and_sentences(sets, gvl, server, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("score", "--dataset", sets[0], "--model", gvl, "--out", out, "--cross") == 0
    assert len(server.requests) == 8  # four videos, two sentences
    matrix = json.loads((out / "cross.json").read_text())
    assert matrix["tasks"] == list(TRAIN_TASKS)
    assert matrix["voc"] == [[pytest.approx(1.0)] * 2] * 2  # it does not listen
    assert "the right sentence has the highest VOC for 0 of 2 tasks" in capsys.readouterr().out
    assert (out / "cross.png").stat().st_size > 1000
    assert len(json.loads((out / "scores.json").read_text())["videos"]) == 8
    assert "| expert | 4 |" in (out / "scores.md").read_text()  # under their own sentences


def test_examples_and_the_question_of_success(data, sets, gvl, server, tmp_path, capsys):
    settings = ("--examples-from", data, "--ask-success", "reasoning", "--tasks", "push", "--frames", "4")
    assert run("score", "--dataset", sets[0], "--model", gvl, "--out", tmp_path / "out", *settings) == 0
    values, asked = server.requests[:2]
    texts = [part.get("text", "") for part in values["messages"][0]["content"]]
    said = [float(found[1]) for text in texts if (found := re.fullmatch(r"Task Completion Percentages: (.+)%", text))]
    assert sorted(said) == pytest.approx([0.0, 100 / 3, 200 / 3, 100.0], abs=0.1)
    assert pictures(values) == 8
    assert pictures(asked) == 4
    assert "First reason step by step" in asked["messages"][0]["content"][-1]["text"]
    assert "success by asking: accuracy" in capsys.readouterr().out
    assert instructions_for("push-v3")[0] in texts[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--frames", "2"), "--frames: expected at least 3, got 2"),
        (("--shots", "0"), "--shots: expected at least 1, got 0"),
        (
            ("--cross", "--instruction", "x"),
            "--cross: expected without --instruction, as it takes the sentence of every task",
        ),
        (("--cross", "--tasks", "push", "--model", "vlp-compact"), "--cross: expected at least two tasks, got push-v3"),
        (
            ("--model", "vlp-compact", "--ask-success", "plain"),
            "--ask-success: expected a model of a chat model, such as gvl:..., got vlp-compact",
        ),
        (
            ("--model", "vlp-compact", "--examples-from", "x"),
            "--examples-from: expected a model gvl:..., which is shown examples, got vlp-compact",
        ),
    ],
)
def test_what_is_refused(options, said, sets, tmp_path, capsys):
    assert run("score", "--dataset", sets[0], "--out", tmp_path / "out", *options) == 2
    assert capsys.readouterr().err.endswith(f"vlp-gym: error: {said}\n")
