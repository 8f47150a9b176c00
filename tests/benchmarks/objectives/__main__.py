"""Compare learning objectives: `python -m tests.benchmarks.objectives --help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.benchmarks.objectives.report import markdown
from tests.benchmarks.objectives.run import Backbone, run
from vlp_gym.models.registry import best_device
from vlp_gym.training.recipes.embedding import OBJECTIVES


@dataclass
class Options:
    """Compare learning objectives on the same data and backbone, as "Revisiting the learning objectives" does.

    button-press, drawer-open and door-open are judged, and kept out of the training with seven tasks like them. The
    same command again goes on where it stopped.
    """

    data: tuple[Path, ...]
    """folders of demonstrations that `vlp-gym collect` filled, one a camera with the same seed"""
    eval_data: tuple[Path, ...]
    """folders of expert, medium and random rollouts of the three tasks, one a camera"""
    out: Path | None = None
    """folder for study.json, study.md, study.png and the models; runs/objectives-BACKBONE by default"""
    objectives: tuple[str, ...] = OBJECTIVES
    """which objectives to compare"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of weights, samples and augmentation, shared by the objectives"""
    steps: int = 2_000
    """optimizer steps of each"""
    backbone: Backbone = "compact"
    """compact trains small encoders from scratch; siglip2 adapters of SigLIP2"""
    demonstrations: int | None = None
    """demonstrations of each task; the paper uses 3; all by default"""


def main(options: Options) -> None:
    """Run the study, or go on with it, and print its table."""
    out = options.out or Path("runs") / f"objectives-{options.backbone}"
    study = run(
        options.data, options.eval_data, out,
        objectives=options.objectives, seeds=options.seeds, steps=options.steps, backbone=options.backbone,
        demonstrations=options.demonstrations, device=best_device(),
    )  # fmt: skip
    print(markdown(study))
    print(f"written: {' '.join(str(out / f'study.{kind}') for kind in ('json', 'md', 'png'))}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=Options.__doc__))
