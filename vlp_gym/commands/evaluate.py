"""`vlp-gym eval`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

SplitName = Literal["vlp", "ml45", "all"]


def evaluate(
    *,
    model: str = "vlp-compact",
    data: Path,
    split: SplitName = "vlp",
    out: Path | None = None,
    seed: int = 0,
    pairs_per_task: int = 500,
) -> None:
    """Judge a reward model on the held-out tasks of a split: JSON, a Markdown table and a picture.

    Args:
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        data: folder that `vlp-gym collect` filled, best with another seed than the training's.
        split: vlp and ml45 judge the five tasks that each holds out; all judges the 50.
        out: folder for the report; runs/eval/MODEL-SPLIT by default.
        seed: of every draw.
        pairs_per_task: pairs for scripted ITP, IVP and ILP.
    """
    from vlp_gym.data.shards import load_trajectories, shard_path
    from vlp_gym.evaluation.evaluate import evaluate as judge
    from vlp_gym.evaluation.report import markdown, write_report
    from vlp_gym.metaworld.instructions import ML45_TEST_TASKS, SIBLINGS, TEST_TASKS, train_tasks
    from vlp_gym.models.registry import best_device, load_reward_model

    if pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task: expected at least 1, got {pairs_per_task}")
    tasks = {"vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "all": train_tasks("all")}[split]
    siblings = {SIBLINGS[task] for task in tasks if task in SIBLINGS} - set(tasks)
    collected = [task for task in sorted(siblings) if shard_path(data, task, "expert").exists()]
    device = best_device()
    live = load_reward_model(model, device=device)
    trajectories = load_trajectories(data, tasks=[*tasks, *collected])
    result = judge(
        live, trajectories, tasks=tasks, split_name=split, seed=seed, device=device, pairs_per_task=pairs_per_task
    )
    result["settings"]["model"] = model
    # The last part of a path or hub id; all of a name with a family, whose tag alone would not tell models apart.
    name = re.sub(r"[^\w.-]+", "-", model if ":" in model else Path(model).name)
    out = Path("runs") / "eval" / f"{name}-{split}" if out is None else out
    paths = write_report(result, out)
    print(markdown(result))
    print(f"report: {' '.join(str(path) for path in paths)}")
