"""In-context examples for GVL from rollouts: of the same task, of another one, or of another data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError
from vlp_gym.prompting.shots import Example

Which = Literal["same", "other", "any"]


def example_of(trajectory: Trajectory, frames: int) -> Example:
    """Frames of a rollout until its success, evenly spread, at ``100 t / T`` percent (GVL, section 3).

    Args:
        trajectory: one that succeeds.
        frames: T, at most; fewer where it has fewer.

    Raises:
        DatasetError: it does not succeed.
    """
    end = trajectory.first_success
    if end is None:
        raise DatasetError(f"{trajectory.name}: expected a rollout that succeeds, as an example of progress")
    index = np.linspace(0, end, min(frames, end + 1)).round().astype(np.int64)
    return trajectory.frames[index], [100.0 * place / max(end, 1) for place in index.tolist()]


def choose_examples(
    tasks: Mapping[str, str], shown: Sequence[Trajectory], which: Which, *, shots: int, frames: int, seed: int = 0
) -> dict[str, list[Example]]:
    """Draw examples for each task.

    Args:
        tasks: task -> the instruction that it is asked about under.
        shown: rollouts to take them from; those that fail are left out.
        which: "same": of the task itself; "other": of another one, drawn for each task (GVL, figure 14); "any": of
            whatever task, as of another embodiment's data (figure 4).
        shots: examples for each task.
        frames: most frames of an example.
        seed: seeds the draws.

    Returns:
        Instruction -> its examples, for `GVLModel.show_examples`.

    Raises:
        DatasetError: there are too few.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[Example]] = {}
    for task, instruction in tasks.items():
        fitting = [t for t in shown if t.success.any() and (which == "any" or (t.task == task) == (which == "same"))]
        if which == "other" and fitting:  # all examples of one task
            others = sorted({t.task for t in fitting})
            chosen = others[int(rng.integers(len(others)))]
            fitting = [t for t in fitting if t.task == chosen]
        if len(fitting) < shots:
            said = {"same": f"of {task}", "other": f"of another task than {task}", "any": "at all"}[which]
            raise DatasetError(f"expected {shots} successful rollouts {said} as examples, found {len(fitting)}")
        drawn = rng.choice(len(fitting), shots, replace=False)
        found[instruction] = [example_of(fitting[int(k)], frames) for k in drawn]
    return found
