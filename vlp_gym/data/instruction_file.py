"""Sentences for tasks in a file of their own, in the place of those that the rollouts carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import CheckpointError, DatasetError, InstructionError
from vlp_gym.schema import Document, first_fault
from vlp_gym.storage import read_file
from vlp_gym.text import normalize_instruction

MAX_BYTES = 4 << 20


class TaskInstructions(Document):
    """The sentences of one task.

    Attributes:
        sentences: the canonical one first.
        baseline: what `VLMRMModel` takes for the scene without the task; None: the model's own.
    """

    sentences: Annotated[list[str], Field(min_length=1, max_length=1000)]
    baseline: str | None = None


class InstructionFile(Document):
    """A JSON file of sentences.

    Attributes:
        source: who wrote them.
        tasks: task -> its sentences.
    """

    format: Literal[1] = 1
    source: str
    tasks: Annotated[dict[str, TaskInstructions], Field(min_length=1)]

    def baselines(self) -> dict[str, str]:
        """Sentence -> baseline, of the tasks that have one."""
        return {said: each.baseline for each in self.tasks.values() if each.baseline for said in each.sentences}


def read_instructions(path: str | Path) -> InstructionFile:
    """Read and check a file of sentences.

    Raises:
        DatasetError: it is missing or damaged, a sentence is empty or not normalised, or a sentence is there twice.
    """
    try:
        book = InstructionFile.model_validate_json(read_file(Path(path), MAX_BYTES))
    except ValidationError as error:
        raise DatasetError(f"{path}: {first_fault(error)}") from None
    except CheckpointError as error:
        raise DatasetError(str(error)) from None
    seen: dict[str, str] = {}
    for task, own in book.tasks.items():
        for said in own.sentences if own.baseline is None else (*own.sentences, own.baseline):
            try:
                clean = normalize_instruction(said)
            except InstructionError as error:
                raise DatasetError(f"{path}: {task}: {error}") from error
            if clean != said:
                raise DatasetError(f"{path}: {task}: {said!r} is not normalised; write {clean!r}")
        for said in own.sentences:
            if said in seen:
                raise DatasetError(f"{path}: {task}: {said!r} also stands at {seen[said]}")
            seen[said] = task
    return book


def with_instructions(trajectory: Trajectory, tasks: Mapping[str, TaskInstructions]) -> Trajectory:
    """The trajectory with the sentences of its task, where there are some for it.

    They take the place of its training sentences. Held-out ones that are among them are none any more, and which
    sentence asks for the opposite of which is not known of new ones.
    """
    own = tasks.get(trajectory.task)
    if own is None:
        return trajectory
    held_out = tuple(said for said in trajectory.held_out if said not in own.sentences)
    return replace(trajectory, sentences=tuple(own.sentences), held_out=held_out, opposite_sentences=())
