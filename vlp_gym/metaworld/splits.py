"""Names of Meta-World's tasks, and the training and evaluation tasks of each split."""

from __future__ import annotations

from typing import Literal

from vlp_gym.metaworld.instructions import VARIANT_TASKS, all_tasks, instructions_for

Split = Literal["vlp", "ml45", "rewind", "all"]

TEST_TASKS = VARIANT_TASKS
"""VLP's five held-out tasks."""

ML45_TEST_TASKS = ("bin-picking-v3", "box-close-v3", "door-lock-v3", "door-unlock-v3", "hand-insert-v3")
"""The five held-out tasks of Meta-World's ML45."""

REWIND_TRAIN_TASKS = (
    "button-press-topdown-wall-v3", "button-press-v3", "coffee-pull-v3", "dial-turn-v3", "door-open-v3",
    "door-unlock-v3", "drawer-close-v3", "faucet-open-v3", "hand-insert-v3", "handle-press-v3", "handle-pull-side-v3",
    "peg-insert-side-v3", "pick-place-v3", "plate-slide-back-side-v3", "plate-slide-v3", "push-v3", "reach-v3",
    "stick-pull-v3", "stick-push-v3", "window-open-v3",
)  # fmt: skip
"""ReWiND's twenty training tasks (SPUR takes the same split)."""

REWIND_TEST_TASKS = (
    "button-press-topdown-v3", "button-press-wall-v3", "coffee-button-v3", "coffee-push-v3", "door-close-v3",
    "door-lock-v3", "faucet-close-v3", "handle-press-side-v3", "handle-pull-v3", "pick-place-wall-v3",
    "plate-slide-back-v3", "plate-slide-side-v3", "push-back-v3", "reach-wall-v3", "soccer-v3", "sweep-into-v3",
    "window-close-v3",
)  # fmt: skip
"""ReWiND's seventeen test tasks; the other thirteen are in neither list."""

_HELD_OUT: dict[str, tuple[str, ...]] = {
    "vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "rewind": REWIND_TEST_TASKS, "all": (),
}  # fmt: skip


def full_name(task: str) -> str:
    """A task's name with its version suffix, added if missing.

    >>> full_name("button-press"), full_name("button-press-v3")
    ('button-press-v3', 'button-press-v3')
    """
    return task if task.endswith("-v3") else f"{task}-v3"


def train_tasks(split: Split) -> tuple[str, ...]:
    """The training tasks of a split, sorted.

    Args:
        split: "vlp" (all but `TEST_TASKS`), "ml45" (all but `ML45_TEST_TASKS`), "rewind" (`REWIND_TRAIN_TASKS`) or
            "all" (50).

    Raises:
        ValueError: for an unknown split.
    """
    if split not in _HELD_OUT:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_HELD_OUT)}")
    return REWIND_TRAIN_TASKS if split == "rewind" else tuple(t for t in all_tasks() if t not in _HELD_OUT[split])


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
