"""Files of sentences: read, checked, and put in the place of a rollout's own."""

from __future__ import annotations

import json
import re

import pytest
from rollouts import painted

from vlp_gym.data.instruction_file import InstructionFile, TaskInstructions, read_instructions, with_instructions
from vlp_gym.errors import DatasetError


def write(path, tasks, **fields):
    path.write_text(json.dumps({"format": 1, "source": "by hand", "tasks": tasks, **fields}))
    return path


def test_sentences_take_the_place_of_the_rollouts_own(tmp_path):
    rollout = painted("push-v3", "expert")
    book = read_instructions(
        write(tmp_path / "a.json", {"push-v3": {"sentences": ["shove it", rollout.held_out[1]], "baseline": "a puck"}})
    )
    assert book.baselines() == {"shove it": "a puck", rollout.held_out[1]: "a puck"}
    told = with_instructions(rollout, book.tasks)
    assert told.sentences == ("shove it", rollout.held_out[1])
    assert told.held_out == tuple(said for said in rollout.held_out if said != rollout.held_out[1])
    assert told.opposite_sentences == ()
    assert told.frames is rollout.frames
    other = painted("reach-v3", "expert")
    assert with_instructions(other, book.tasks) is other


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({}, r"tasks: .*"),
        ({"push": {"sentences": []}}, r"tasks\.push\.sentences: .*"),
        ({"push": {"sentences": [" "]}}, r"push: the instruction is empty; say what .*"),
        ({"push": {"sentences": ["push "]}}, r"push: 'push ' is not normalised; write 'push'"),
        ({"push": {"sentences": ["go"], "baseline": ""}}, r"push: the instruction is empty; say what .*"),
        ({"push": {"sentences": ["go"]}, "pull": {"sentences": ["go"]}}, r"pull: 'go' also stands at push"),
        ({"push": {"sentences": ["go", "go"]}}, r"push: 'go' also stands at push"),
    ],
)
def test_what_is_refused(tasks, said, tmp_path):
    path = write(tmp_path / "a.json", tasks)
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(path))}: {said}$"):
        read_instructions(path)


def test_no_file_of_this_kind(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for path in (tmp_path / "a.json", tmp_path / "b.json", write(tmp_path / "c.json", {}, format=2)):
        with pytest.raises(DatasetError, match=rf"^{re.escape(str(path))}: "):
            read_instructions(path)


def test_what_is_written_can_be_read(tmp_path):
    book = InstructionFile(source="me", tasks={"a": TaskInstructions(sentences=["go", "walk"])})
    (tmp_path / "a.json").write_text(book.model_dump_json())
    assert read_instructions(tmp_path / "a.json") == book
