"""Opposite sentences: the rules by example, and over every sentence that training may use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vlp_gym.metaworld.instructions import NOT_OPPOSITE, SIBLINGS, instructions_for, training_phrasings
from vlp_gym.metaworld.opposites import _OPEN, _PATTERN, _RULES, opposite_sentences
from vlp_gym.metaworld.splits import train_tasks


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
    assert set(opposite_sentences(sentence)) == opposites


@pytest.mark.parametrize("sentence", ["reach the goal", "turn the dial", "opening pushes", ""])
def test_words_without_a_direction(sentence):
    assert opposite_sentences(sentence) == ()


def test_a_uniform_draw_draws_each_words_opposite_uniformly():
    """As if every word of direction were turned round by itself, whatever the others became."""
    sentence = "insert the rod forward and open it"
    words = [match.group() for match in _PATTERN.finditer(sentence)]
    options = [_OPEN[False] if word == "open" else _RULES[word] for word in words]
    assert [len(each) for each in options] == [2, 2, 2]
    found = opposite_sentences(sentence)
    assert len(found) == len(set(found)) == 8
    assert found == tuple(f"{a} the rod {b} and {c} it" for a, b, c in itertools.product(*options))


def test_every_task_that_has_an_opposite_has_opposite_sentences():
    for task in sorted(SIBLINGS.keys() - NOT_OPPOSITE):
        turned = [opposite_sentences(sentence) for sentence in training_phrasings(task)]
        assert np.mean([len(sentences) > 0 for sentences in turned]) >= 0.75, task


def test_an_opposite_is_never_a_sentence_of_the_same_task():
    for task in train_tasks("all"):
        own = set(instructions_for(task))
        assert not own & {turned for sentence in own for turned in opposite_sentences(sentence)}
