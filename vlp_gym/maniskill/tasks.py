"""The ManiSkill 3 tasks that have an expert, and which of them are for training."""

from __future__ import annotations

from dataclasses import dataclass

from vlp_gym.errors import did_you_mean


@dataclass(frozen=True)
class Task:
    """What a collection must know of a task.

    Attributes:
        moved: attribute of the environment that is the object to be moved.
        steps: environment steps of its expert, the median of ten.
        dense: whether the environment has a dense reward; others pay 1 for success.
        eye: where the camera is, metres.
        target: what it looks at, metres.
    """

    moved: str
    steps: int
    dense: bool = True
    eye: tuple[float, float, float] = (0.55, 0.5, 0.5)
    target: tuple[float, float, float] = (0.03, 0.0, 0.08)


TRAIN = {
    "PegInsertionSide": Task("peg", 150, eye=(0.5, -0.5, 0.55), target=(0.0, 0.1, 0.1)),
    "PickCube": Task("cube", 75),
    "PlaceSphere": Task("obj", 115),
    "PlugCharger": Task("charger", 165, dense=False, eye=(-0.2, 0.5, 0.4), target=(0.0, 0.0, 0.08)),
    "PokeCube": Task("cube", 130),
    "PullCubeTool": Task("cube", 250),
    "PushCube": Task("obj", 70),
    "StackPyramid": Task("cubeC", 180, dense=False),
}
TEST = {"LiftPegUpright": Task("peg", 175), "PullCube": Task("obj", 72), "StackCube": Task("cubeA", 108)}
"""Known objects, in a task that training does not know."""

TASKS = dict(sorted({**TRAIN, **TEST}.items()))


def maniskill_task(task: str) -> str:
    """The task, if it is one of `TASKS`; raises ValueError for any other."""
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}{did_you_mean(task, TASKS)}")
    return task
