"""Names of Meta-World's tasks, and the training and evaluation tasks of each split."""

from __future__ import annotations

from typing import Literal

from vlp_gym.metaworld.instructions import VARIANT_TASKS, all_tasks, instructions_for

Split = Literal["vlp", "ml45", "all"]

TEST_TASKS = VARIANT_TASKS
"""VLP's five held-out tasks."""

ML45_TEST_TASKS = ("bin-picking-v3", "box-close-v3", "door-lock-v3", "door-unlock-v3", "hand-insert-v3")
"""The five held-out tasks of Meta-World's ML45."""

_HELD_OUT: dict[str, tuple[str, ...]] = {"vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "all": ()}


def full_name(task: str) -> str:
    """A task's name with its version suffix, added if missing.

    >>> full_name("button-press"), full_name("button-press-v3")
    ('button-press-v3', 'button-press-v3')
    """
    return task if task.endswith("-v3") else f"{task}-v3"


def train_tasks(split: Split) -> tuple[str, ...]:
    """The training tasks of a split, sorted.

    Args:
        split: "vlp" (all but `TEST_TASKS`), "ml45" (all but `ML45_TEST_TASKS`) or "all" (50).

    Raises:
        ValueError: for an unknown split.
    """
    if split not in _HELD_OUT:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_HELD_OUT)}")
    return tuple(task for task in all_tasks() if task not in _HELD_OUT[split])


def judged_tasks(split: Split) -> tuple[str, ...]:
    """The evaluation tasks of a split: its held-out tasks, or all tasks for "all"; raises like `train_tasks`."""
    trained = train_tasks(split)
    return _HELD_OUT[split] or trained


def known_task(name: str) -> str:
    """The `full_name` of a Meta-World task.

    >>> known_task("button-press")
    'button-press-v3'

    Raises:
        ValueError: for an unknown task; the message names similar ones.
    """
    task = full_name(name)
    instructions_for(task)
    return task
