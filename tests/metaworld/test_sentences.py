"""What the book gives a trajectory, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rollouts import painted

from vlp_gym.metaworld import instructions
from vlp_gym.metaworld.opposites import opposite_sentences
from vlp_gym.metaworld.sentences import with_sentences

BARE = {"sentences": (), "held_out": (), "opposite_sentences": (), "opposite": None, "sibling": None, "variants": {}}


@pytest.mark.parametrize("task", instructions.all_tasks())
def test_the_books_sentences(task):
    made = with_sentences(replace(painted(task, "expert", frames=2), **BARE))
    assert [*made.sentences, *made.held_out] == instructions.instructions_for(task)
    assert len(made.sentences) == 32
    assert made.opposite_sentences == tuple(map(opposite_sentences, made.sentences))
    assert made.sibling == instructions.SIBLINGS.get(task)
    assert made.opposite == (None if task in instructions.NOT_OPPOSITE else made.sibling)
    assert bool(made.variants) == (task in instructions.VARIANT_TASKS)
    for kind, sentences in made.variants.items():
        assert list(sentences) == instructions.variants(task)[kind]


def test_what_is_said_already_or_not_known_stays():
    own = replace(painted("push-v3", "expert", frames=2), sentences=("shove the block",), held_out=())
    assert with_sentences(own) is own
    other = replace(painted("fold the towel", "expert", frames=2))
    assert with_sentences(other) is other
