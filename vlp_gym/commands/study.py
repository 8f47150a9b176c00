"""`vlp-gym study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlp_gym.errors import check_packages, did_you_mean


def study(
    name: Literal["vlp-ablations"],
    /,
    *,
    data: tuple[Path, ...],
    out: Path = Path("runs/vlp-ablations"),
    eval_data: Path | None = None,
    split: Literal["vlp", "ml45", "rewind"] = "vlp",
    variants: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    steps: int = 15_000,
    pairs: int = 16,
    learning_rate: float = 3e-5,
    backbone: str = "small",
    token_files: Path | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    pairs_per_task: int = 100,
    pairs_by: Literal["states", "rewards"] = "states",
) -> None:
    """Make a table of a paper: train each variant, judge it, and say which of the published orders hold.

    vlp-ablations: VLP's tables 13 (weights of the losses) and 14 (share of the data), by the published recipe, each
    variant judged on the held-out tasks of a split. Repeat the command to go on; what is finished is not trained again.

    For example: vlp-gym study vlp-ablations --data data/train --eval-data data/eval --steps 2000 --pairs 4

    Args:
        name: vlp-ablations.
        data: folders from `vlp-gym collect` to train on.
        out: folder for the models, result.json and result.md.
        eval_data: folder with rollouts of the held-out tasks; default: the first of --data.
        split: which tasks are held out.
        variants: only these of no-ilp, strong-ilp, no-ivp, strong-ivp, half-data, most-data and full; default: all.
        seeds: each trains every variant.
        steps: training steps of each run.
        pairs: pairs of videos in a batch; the published 16 take 9 GB with the small backbone.
        learning_rate: the peak.
        backbone: small (random weights at first), or a frozen one such as open_clip:ViT-B-16/openai.
        token_files: folder for what a frozen backbone makes of the frames, shared by all runs.
        precision: mixed precision of the training.
        pairs_per_task: pairs of a task for ITP, IVP and ILP.
        pairs_by: see `vlp-gym eval`.
    """
    check_packages(dict.fromkeys(("accelerate", "datasets", "PIL", "scipy", "matplotlib"), "train"), "a study needs")
    from vlp_gym.evaluation.ablations import VARIANTS

    if unknown := [each for each in variants if each not in VARIANTS]:
        raise ValueError(
            f"--variants: expected some of {', '.join(VARIANTS)}, got {unknown[0]}{did_you_mean(unknown[0], VARIANTS)}"
        )
    for option, given in (("--data", data), ("--seeds", seeds)):
        if not given:
            raise ValueError(f"{option}: expected at least one, got none")
    if pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task: expected at least 1, got {pairs_per_task}")
    from vlp_gym.commands.study_runs import run
    from vlp_gym.training.recipes.vlp import VLPOptions

    options: dict[str, Any] = {
        "data": data, "split": split, "steps": steps, "pairs": pairs, "learning_rate": learning_rate,
        "backbone": backbone, "token_files": token_files, "precision": precision,
    }  # fmt: skip
    runs = {
        (variant, seed): VLPOptions(
            **options, **VARIANTS[variant].options, seed=seed, out=out / f"{variant}-seed-{seed}"
        )
        for variant in variants or VARIANTS
        for seed in dict.fromkeys(seeds)
    }
    next(iter(runs.values())).check_packages()
    run(runs, eval_data or data[0], out, pairs_per_task, pairs_by)
