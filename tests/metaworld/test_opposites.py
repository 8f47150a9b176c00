"""Opposite sentences: the rules by example, and over every sentence that training may use."""

from __future__ import annotations

import numpy as np
import pytest

from vlp_gym.metaworld.instructions import NOT_OPPOSITE, SIBLINGS, instructions_for, train_tasks, training_phrasings
from vlp_gym.metaworld.opposites import opposite_sentence


@pytest.mark.parametrize(
    ("sentence", "opposites"),
    [
        ("open the door", {"close the door", "shut the door"}),
        ("push the window pane shut", {"pull the window pane open"}),
        ("lift the bar", {"lower the bar"}),
        ("unlock the door", {"lock the door"}),
        ("lock the door", {"unlock the door"}),
        ("turn the lock on the safe door clockwise", {"turn the lock on the safe door counterclockwise"}),
        ("pull the cup out from under the coffee machine", {"push the cup under the coffee machine"}),
        ("insert the rod sideways", {"remove the rod sideways", "unplug the rod sideways"}),
        ("turn on the tap", {"turn off the tap"}),
        ("press the button", {"release the button"}),
    ],
)
def test_rules(sentence, opposites):
    assert {opposite_sentence(sentence, np.random.default_rng(seed)) for seed in range(30)} == opposites


@pytest.mark.parametrize("sentence", ["reach the goal", "turn the dial", "opening pushes", ""])
def test_words_without_a_direction(sentence):
    assert opposite_sentence(sentence, np.random.default_rng(0)) is None


def test_every_task_that_has_an_opposite_has_opposite_sentences():
    for task in sorted(SIBLINGS.keys() - NOT_OPPOSITE):
        turned = [opposite_sentence(sentence, np.random.default_rng(0)) for sentence in training_phrasings(task)]
        assert np.mean([sentence is not None for sentence in turned]) >= 0.75, task


def test_an_opposite_is_never_a_sentence_of_the_same_task():
    for task in train_tasks("all"):
        own = set(instructions_for(task))
        assert not own & {opposite_sentence(sentence, np.random.default_rng(0)) for sentence in own}
