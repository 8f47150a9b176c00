"""Names of Meta-World's tasks: in full, those that a model is trained on, and those that it is judged on."""

from __future__ import annotations

from typing import Literal

from vlp_gym.metaworld.instructions import VARIANT_TASKS, all_tasks, instructions_for

Split = Literal["vlp", "ml45", "all"]

TEST_TASKS = VARIANT_TASKS
"""The five tasks that VLP holds out."""

ML45_TEST_TASKS = ("bin-picking-v3", "box-close-v3", "door-lock-v3", "door-unlock-v3", "hand-insert-v3")
"""The five tasks that Meta-World's ML45 holds out."""

_HELD_OUT: dict[str, tuple[str, ...]] = {"vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "all": ()}


def full_name(task: str) -> str:
    """A task's name with its version, which may be left out.

    >>> full_name("button-press"), full_name("button-press-v3")
    ('button-press-v3', 'button-press-v3')
    """
    return task if task.endswith("-v3") else f"{task}-v3"


def train_tasks(split: Split) -> tuple[str, ...]:
    """The tasks, in alphabetical order, that a split trains on.

    Args:
        split: "vlp" (all but `TEST_TASKS`), "ml45" (all but `ML45_TEST_TASKS`) or "all" (50).

    Raises:
        ValueError: unknown split.
    """
    if split not in _HELD_OUT:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_HELD_OUT)}")
    return tuple(task for task in all_tasks() if task not in _HELD_OUT[split])


def judged_tasks(split: Split) -> tuple[str, ...]:
    """The tasks that a split is judged on: those that it holds out, or all where it holds out none.

    Raises:
        ValueError: unknown split.
    """
    trained = train_tasks(split)
    return _HELD_OUT[split] or trained


def known_task(name: str) -> str:
    """A task's full name; its version may be left out.

    >>> known_task("button-press")
    'button-press-v3'

    Raises:
        ValueError: for a name that is no Meta-World task; it names near matches.
    """
    task = full_name(name)
    instructions_for(task)
    return task
