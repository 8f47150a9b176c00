"""`vlp-gym eval`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlp_gym.commands.data import SplitName, all_tasks, chosen_tasks, load, opened_instructions
from vlp_gym.errors import check_packages

if TYPE_CHECKING:
    from vlp_gym.data.trajectory import Trajectory


def evaluate(
    *,
    model: str = "vlp-compact",
    data: Path,
    split: SplitName = "vlp",
    tasks: tuple[str, ...] = (),
    out: Path | None = None,
    seed: int = 0,
    pairs_per_task: int = 500,
    pairs_by: Literal["rewards", "states"] = "rewards",
    instructions: str | None = None,
) -> None:
    """Evaluate a reward model on the held-out tasks of a split; writes JSON, a Markdown table and a plot.

    For example: vlp-gym eval --model runs/staged-vlp --data data/eval --split vlp

    Args:
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        data: folder from `vlp-gym collect`, preferably with another seed than the training data; or another data set,
            see `vlp-gym data --help`.
        split: vlp or ml45: the five Meta-World tasks that it holds out; rewind: ReWiND's seventeen; all: all 50;
            maniskill: the three ManiSkill tasks that are not for training; data: every task in the folder.
        tasks: judge only these tasks of the split; default: all of them. The suffix -v3 of a Meta-World task may be
            omitted.
        out: folder for the report; default: runs/eval/MODEL-SPLIT.
        seed: seeds all random draws.
        pairs_per_task: pairs per task for scripted ITP, IVP and ILP; VLP has 100.
        pairs_by: the segments of a scripted pair come from two kinds of rollouts, told apart by k-means on reward
            curves, or on states and actions as in VLP, where the data have them.
        instructions: file with sentences for the tasks in the place of their own, from `vlp-gym instructions`; or
            vlp-table-12: VLP's sentences for the models it compares with, and VLM-RM's baseline for each task.
    """
    check_packages(dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train"), "an evaluation needs")
    if pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task: expected at least 1, got {pairs_per_task}")
    from vlp_gym.models.registry import best_device, load_reward_model

    judged = chosen_tasks(split, data, tasks)
    book, there = opened_instructions(instructions), all_tasks(data)  # before a large model is loaded
    device = best_device()
    live = load_reward_model(model, device=device)
    if book is not None and hasattr(live, "baselines"):
        live.baselines = book.baselines()
    trajectories = load(data, tasks=judged, instructions=book)
    siblings = {trajectory.sibling for trajectory in trajectories if trajectory.sibling} - set(judged)
    if collected := sorted(siblings.intersection(there)):
        trajectories += load(data, tasks=collected)
        trajectories.sort(key=lambda trajectory: f"{trajectory.task}-{trajectory.tier}")  # as one folder
    # The last part of a path or hub id; the whole name if it has a family, because its tag alone is ambiguous.
    name = re.sub(r"[^\w.-]+", "-", model if ":" in model else Path(model).name)
    out = Path("runs") / "eval" / f"{name}-{split}" if out is None else out
    settings = {
        "split_name": split,
        "seed": seed,
        "device": device,
        "pairs_per_task": pairs_per_task,
        "pairs_by": pairs_by,
    }
    report(live, model, trajectories, judged, out, **settings)


def report(
    live: Any, model: str, trajectories: Sequence[Trajectory], tasks: Sequence[str], out: Path, **settings: Any
) -> None:
    """Judge a model, write the report into a folder and print it.

    Args:
        live: the model.
        model: its name, for the report.
        trajectories: see `vlp_gym.evaluation.evaluate.evaluate`.
        tasks: the same.
        out: the folder.
        settings: further arguments of `evaluate`.
    """
    from vlp_gym.evaluation.evaluate import evaluate as judge
    from vlp_gym.evaluation.report import markdown, write_report

    result = judge(live, trajectories, tasks=tasks, **settings)
    result["settings"]["model"] = model
    paths = write_report(result, out)
    print(markdown(result))
    print(f"report: {' '.join(str(path) for path in paths)}")
