"""Adds the sentences of Meta-World's 50 tasks to trajectories."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.metaworld import instructions
from vlp_gym.metaworld.opposites import opposite_sentences


def with_sentences(trajectory: Trajectory) -> Trajectory:
    """The trajectory with the sentences, variants, opposite and sibling of its Meta-World task.

    Trajectories with sentences or of other tasks are returned unchanged.
    """
    if trajectory.sentences or trajectory.task not in instructions.all_tasks():
        return trajectory
    return replace(trajectory, **_fields(trajectory.task))


@cache
def _fields(task: str) -> dict[str, Any]:
    training = tuple(instructions.training_phrasings(task))
    variants = instructions.variants(task) if task in instructions.VARIANT_TASKS else {}
    sibling = instructions.SIBLINGS.get(task)
    return {
        "sentences": training,
        "held_out": tuple(instructions.held_out_phrasings(task)),
        "opposite_sentences": tuple(opposite_sentences(sentence) for sentence in training),
        "opposite": None if task in instructions.NOT_OPPOSITE else sibling,
        "sibling": sibling,
        "variants": {kind: tuple(sentences) for kind, sentences in variants.items()},
    }
