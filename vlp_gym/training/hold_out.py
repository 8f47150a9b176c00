"""Keeps a share of the episodes out of training, to judge the model on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlp_gym.data.trajectory import Trajectory


def hold_out(trajectories: Sequence[Trajectory], share: float, seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """Split trajectories into those to train on and those held out, both in their order.

    Of each task and tier a share of the episodes is held out, whole, with all of their views: at least one where there
    are two or more, and never all. Tiers whose episodes begin alike, with the same seeds, hold out the same ones.

    Args:
        trajectories: of any tasks, tiers and cameras.
        share: to hold out, in [0, 1).
        seed: seeds the draw.

    Raises:
        ValueError: no task and tier has a second episode.
    """
    if not share:
        return list(trajectories), []
    seeds: dict[tuple[str, str], set[int]] = {}
    for trajectory in trajectories:
        seeds.setdefault((trajectory.task, trajectory.tier), set()).add(trajectory.seed)
    chosen: set[tuple[str, str, int]] = set()
    for (task, tier), own in seeds.items():
        count = min(max(1, round(share * len(own))), len(own) - 1)
        chosen |= {(task, tier, number) for number in sorted(own, key=lambda number: _place(seed, number))[:count]}
    if not chosen:
        raise ValueError(
            f"--hold-out: expected at least two episodes of a task and tier, got one of each ({len(seeds)} in all); "
            "collect more, or train without it"
        )
    kept: list[Trajectory] = []
    held: list[Trajectory] = []
    for trajectory in trajectories:
        (held if (trajectory.task, trajectory.tier, trajectory.seed) in chosen else kept).append(trajectory)
    return kept, held


def _place(seed: int, number: int) -> tuple[float, int]:
    """An episode's place in a random order that does not depend on which others there are."""
    return float(np.random.default_rng([abs(seed), abs(number), number < 0]).random()), number
