"""What is known of the ManiSkill tasks without ManiSkill."""

from __future__ import annotations

import re

import pytest

from vlp_gym.maniskill.instructions import HELD_OUT, TRAINING
from vlp_gym.maniskill.tasks import TASKS, TEST, TRAIN, maniskill_task
from vlp_gym.text import normalize_instruction


def test_each_task_has_sentences_of_its_own():
    assert list(TRAINING) == list(HELD_OUT) == list(TASKS)
    every = [sentence for task in TASKS for sentence in (*TRAINING[task], *HELD_OUT[task])]
    assert len(set(every)) == len(every) == 7 * len(TASKS)
    assert every == [normalize_instruction(sentence) for sentence in every]


def test_the_test_tasks_are_not_for_training():
    assert (len(TRAIN), len(TEST), len(TASKS)) == (8, 3, 11)


def test_an_unknown_task():
    assert maniskill_task("PickCube") == "PickCube"
    message = f"task: expected one of {', '.join(TASKS)}; got 'PickCub'; did you mean PickCube?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        maniskill_task("PickCub")
