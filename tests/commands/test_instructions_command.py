"""`vlp-gym instructions` against an endpoint on this computer."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("openai")

from command_line import run

from vlp_gym.data.instruction_file import read_instructions
from vlp_gym.metaworld.instructions import instructions_for


def test_written_gone_on_with_and_refused(server, tmp_path, capsys):
    out = tmp_path / "new" / "book.json"
    command = ("instructions", "--model", f"writer?base_url={server.url}&cache=none", "--out", out, "--count", "2")
    theirs = instructions_for("reach-v3")[3]
    server.faults.extend(["say:" + json.dumps(["shove the thing", theirs, "slide that thing"])])
    assert run(*command, "--tasks", "push") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"push-v3: dropped {theirs!r}: it is a sentence of another task",
        f"written: {out}, 3 sentences for 1 tasks",
    ]
    own = [instructions_for("push-v3")[0], "shove the thing", "slide that thing"]
    assert read_instructions(out).tasks["push-v3"].sentences == own

    # What was written for one task is not taken for another; finished tasks are not asked about again.
    server.faults.extend(["say:" + json.dumps(["shove the thing", "go there"]), *["say:['go there']"] * 2])
    assert run(*command, "--tasks", "push-v3", "reach-v3") == 0
    assert len(server.requests) == 4
    assert "fewer new sentences than 2: reach-v3 has 1" in capsys.readouterr().out.splitlines()
    book = read_instructions(out)
    assert book.source == "writer"
    assert book.tasks["push-v3"].sentences == own
    assert book.tasks["reach-v3"].sentences == [instructions_for("reach-v3")[0], "go there"]

    assert run("instructions", "--model", f"other?base_url={server.url}", "--out", out) == 2
    assert capsys.readouterr().err == (
        f"vlp-gym: error: --out: {out} was written by writer, not other; choose another file\n"
    )


def test_with_data_the_picture_is_shown(data, server, tmp_path):
    server.faults.append("say:['shove it']")
    command = ("instructions", "--model", f"writer?base_url={server.url}&cache=none", "--data", data, "--count", "1")
    assert run(*command, "--tasks", "push-v3", "--out", tmp_path / "book.json") == 0
    parts = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "pusch"), "--tasks: unknown task 'pusch'; did you mean push-v3 or push-wall-v3?"),
        (("--count", "0"), "--count: expected at least 1, got 0"),
        (("--out", "book"), "--out: expected a file that ends in .json, got book"),
    ],
)
def test_what_is_refused(options, said, server, tmp_path, capsys):
    command = ("instructions", "--model", f"writer?base_url={server.url}", "--out", tmp_path / "book.json")
    assert run(*command, *options) == 2
    assert capsys.readouterr().err == f"vlp-gym: error: {said}\n"
    assert not server.requests
