"""`vlp-gym objectives`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlp_gym.commands.device import best_device
from vlp_gym.commands.train import Objective


def objectives(
    *,
    data: tuple[Path, ...],
    eval_data: tuple[Path, ...],
    out: Path | None = None,
    objectives: tuple[Objective, ...] = ("triplet", "tcn-text", "r3m", "vip-text", "vip-text+vip", "liv"),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 2_000,
    backbone: Literal["compact", "siglip2"] = "compact",
    demonstrations: int | None = None,
) -> None:
    """Compare learning objectives on the same data and backbone, as "Revisiting the learning objectives" does.

    button-press, drawer-open and door-open are judged, and kept out of the training with seven tasks like them. The
    same command again goes on where it stopped.

    Args:
        data: folders of demonstrations that `vlp-gym collect` filled, one a camera with the same seed.
        eval_data: folders of expert, medium and random rollouts of the three tasks, one a camera.
        out: folder for study.json, study.md, study.png and the models; runs/objectives-BACKBONE by default.
        objectives: which of them.
        seeds: of weights, samples and augmentation, shared by the objectives.
        steps: optimizer steps of each.
        backbone: compact trains small encoders from scratch; siglip2 adapters of SigLIP2.
        demonstrations: of each task; the paper's are 3; all by default.
    """
    from vlp_gym.objective_study.report import markdown
    from vlp_gym.objective_study.run import run

    out = Path("runs") / f"objectives-{backbone}" if out is None else out
    study = run(
        data, eval_data, out,
        objectives=objectives, seeds=seeds, steps=steps, backbone=backbone, demonstrations=demonstrations,
        device=best_device(),
    )  # fmt: skip
    print(markdown(study))
    print(f"written: {' '.join(str(out / f'study.{kind}') for kind in ('json', 'md', 'png'))}")
