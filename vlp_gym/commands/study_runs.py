"""The runs of `vlp-gym study`: each variant is trained and judged once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from vlp_gym.commands.data import judged_tasks, load, training_tasks
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.evaluation.ablations import FIGURES, Judged, markdown, summarize
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.evaluation.plan import PairsBy
from vlp_gym.evaluation.report import write_report
from vlp_gym.models.registry import best_device, load_reward_model
from vlp_gym.policies.saved import read_json
from vlp_gym.storage import write_atomic
from vlp_gym.training.loop import train
from vlp_gym.training.recipes.vlp import VLPOptions

JUDGED = "judged.json"
REPORT_FILES = ("result.json", "result.md")


def run(
    runs: Mapping[tuple[str, int], VLPOptions], eval_data: Path, out: Path, pairs_per_task: int, pairs_by: PairsBy
) -> None:
    """Train and judge what is missing, and write and print the tables.

    Args:
        runs: variant and seed -> how it is trained; all share the settings but those of the variant.
        eval_data: rollouts of the held-out tasks.
        out: folder for the tables.
        pairs_per_task: see `evaluate`.
        pairs_by: see there.
    """
    first = next(iter(runs.values()))
    settings: dict[str, str | int | float] = {
        "data": " ".join(map(str, first.data)), "eval_data": str(eval_data), "pairs_per_task": pairs_per_task,
        "split": first.split, "steps": first.steps, "pairs": first.pairs, "learning_rate": first.learning_rate,
        "backbone": first.backbone, "precision": first.precision, "pairs_by": pairs_by,
    }  # fmt: skip
    done = {key: _finished(options, settings) for key, options in runs.items()}
    if missing := [key for key, judged in done.items() if judged is None]:
        trained = load(*first.data, tasks=training_tasks(first.split, first.data))
        tasks = judged_tasks(first.split, eval_data)
        held_out = load(eval_data, tasks=tasks)
        for variant, seed in tqdm(missing, desc="ablations", unit="run"):
            _train(runs[variant, seed], trained)
            figures = _judge(runs[variant, seed], held_out, tasks, pairs_per_task, pairs_by)
            judged = Judged(variant=variant, seed=seed, settings=settings, figures=figures)
            write_atomic(_folder(runs[variant, seed]) / JUDGED, judged.model_dump_json(indent=1).encode())
            done[variant, seed] = judged
    result = summarize([judged for judged in done.values() if judged is not None], settings)
    text = markdown(result)
    for name, content in zip(REPORT_FILES, (result.model_dump_json(indent=1), text), strict=True):
        write_atomic(out / name, content.encode())
    print(text, end="")
    print(f"result: {' '.join(str(out / name) for name in REPORT_FILES)}")


def _folder(options: VLPOptions) -> Path:
    assert options.out is not None
    return options.out


def _finished(options: VLPOptions, settings: Mapping[str, str | int | float]) -> Judged | None:
    """What an earlier call made of a run; None if it did not get that far."""
    path = _folder(options) / JUDGED
    if not path.exists():
        return None
    judged = read_json(Judged, path)
    if differing := [name for name in settings if judged.settings.get(name) != settings[name]]:
        name = differing[0]
        raise ValueError(
            f"{path}: it was made with {name} {judged.settings.get(name)}, not {settings[name]}; choose another --out"
        )
    return judged


def _train(options: VLPOptions, trajectories: Sequence[Trajectory]) -> None:
    torch.manual_seed(options.seed)
    model, recipe = options.build(trajectories)
    train(model, recipe, _folder(options), options.config())


def _judge(
    options: VLPOptions, held_out: Sequence[Trajectory], tasks: Sequence[str], pairs_per_task: int, pairs_by: PairsBy
) -> dict[str, float | None]:
    """Write a model's report, and return what the tables have of it."""
    device = best_device()
    model = load_reward_model(_folder(options), device=device)
    result = evaluate(
        model, held_out, tasks=tasks, split_name=options.split, device=device, pairs_per_task=pairs_per_task,
        pairs_by=pairs_by,
    )  # fmt: skip
    result["settings"]["model"] = str(options.out)
    write_report(result, _folder(options) / "report")
    means = {column: (result["mean"][name], factor) for column, (_, name, factor) in FIGURES.items()}
    return {column: None if mean is None else mean * factor for column, (mean, factor) in means.items()}
