"""Which learning objective makes the best reward model, all else equal?

The comparison of "Revisiting the learning objectives of vision-language reward models": six objectives train the same
backbone on the same samples for as many steps, and are judged on three tasks that none of them saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from tests.benchmarks.objectives.judge import Figures, average, evaluate_baselines, evaluate_views
from tests.benchmarks.objectives.plots import plot_study
from tests.benchmarks.objectives.report import COMPARED, markdown, orderings, summarize
from tests.benchmarks.objectives.report import HELD_OUT as HELD_OUT
from vlp_gym.data.shards import stream_trajectories
from vlp_gym.data.trajectory import TIERS, Rollout, Trajectory, group_views
from vlp_gym.metaworld.sentences import with_sentences
from vlp_gym.metaworld.splits import train_tasks
from vlp_gym.models.embedding import EmbeddingModel
from vlp_gym.models.siglip2 import SigLIP2Model
from vlp_gym.storage import write_atomic
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.embedding import (
    BATCH,
    OBJECTIVES,
    EmbeddingOptions,
    EmbeddingRecipe,
    SigLIP2Options,
    Views,
)

Backbone = Literal["compact", "siglip2"]
UNTRAINED = "untrained"

LEFT_OUT = (
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "door-unlock-v3",
)
"""Further tasks that the paper keeps out of the training (underlined in its table 4): too near to the others."""

_SYSTEMS: dict[str, tuple[type[EmbeddingOptions], type[nn.Module]]] = {
    "compact": (EmbeddingOptions, EmbeddingModel),
    "siglip2": (SigLIP2Options, SigLIP2Model),
}


def training_tasks() -> tuple[str, ...]:
    """The 40 tasks that the objectives train on."""
    return tuple(task for task in train_tasks("all") if task not in HELD_OUT + LEFT_OUT)


def run(
    data: Sequence[str | Path],
    eval_data: Sequence[str | Path],
    out: str | Path,
    *,
    objectives: Sequence[str] = OBJECTIVES,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 2_000,
    backbone: Backbone = "compact",
    tasks: Sequence[str] | None = None,
    demonstrations: int | None = None,
    views: Views = "timestep",
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train every objective with every seed, judge each on the held-out tasks, and write the comparison.

    What is there is not done again: a finished run is read, one that was interrupted goes on.

    Args:
        data: folders of demonstrations, one a camera; experts that get a training task done are taken.
        eval_data: folders with expert, medium and random rollouts of `HELD_OUT`, one a camera; may be the same.
        out: folder; gets ``study.json``, ``study.md``, ``study.png``, and a folder for each run with its checkpoint.
        objectives: of `OBJECTIVES`.
        seeds: of initial weights, samples and augmentation; the objectives share each of them.
        steps: optimizer steps, at least 1; the paper's 5 epochs are 7,810.
        backbone: "compact" trains `EmbeddingModel` from random weights, "siglip2" adapters of `SigLIP2Model`.
        tasks: to train on; `training_tasks` by default.
        demonstrations: of each task, those with the smallest seeds; the paper's are 3; None takes all.
        views: see `EmbeddingRecipe`.
        options: further arguments of the model.
        device: where the models are judged; training finds its own.
        progress_bar: show them.

    Returns:
        The contents of ``study.json``: "settings", "tasks", "rows" (cameras and multi-view), "runs", "summary",
        "orderings" and "baselines".

    Raises:
        ValueError: if a task that is judged on, or kept out beside them, is to be trained on; for an unknown objective;
            for fewer than 1 step; if ``out`` holds a study with other settings.
        DatasetError: if a folder, a task, a tier or a view is missing; before the first model is built.
        CheckpointError: if the pretrained backbone is not there.
    """
    chosen = list(training_tasks() if tasks is None else tasks)
    if leaked := [task for task in chosen if task in HELD_OUT + LEFT_OUT]:
        raise ValueError(f"tasks: expected none that the study keeps out of the training, got {', '.join(leaked)}")
    if unknown := [name for name in objectives if name not in OBJECTIVES]:
        raise ValueError(f"objectives: expected some of {', '.join(OBJECTIVES)}, got {', '.join(unknown)}")
    if not objectives or not seeds:
        raise ValueError("expected at least one objective and one seed")
    if steps < 1:
        raise ValueError(f"--steps: expected at least 1, got {steps}")
    out = Path(out)
    settings: dict[str, Any] = {
        "backbone": backbone,
        "options": dict(options or {}),
        "steps": steps,
        "batch_size": BATCH,
        "tasks": chosen,
        "demonstrations": demonstrations,
        "views": views,
        "data": [str(folder) for folder in data],
        "eval_data": [str(folder) for folder in eval_data],
    }

    @cache
    def learned_from() -> list[Trajectory]:
        return _demonstrations(stream_trajectories(*data, tasks=chosen), demonstrations, progress_bar)

    @cache
    def judged_on() -> list[Rollout]:
        stream = tqdm(
            stream_trajectories(*eval_data, tasks=HELD_OUT),
            desc="reading the evaluation", unit=" trajectories", leave=False, disable=not progress_bar,
        )  # fmt: skip
        return group_views(with_sentences(trajectory) for trajectory in stream if trajectory.tier in TIERS)

    def config(objective: Any, seed: int) -> TrainConfig:
        return _SYSTEMS[backbone][0](data=(), steps=steps, objective=objective, seed=seed).config()

    def judge(model: nn.Module) -> Figures:
        return evaluate_views(model, judged_on(), device=device, progress_bar=progress_bar)  # type: ignore[arg-type]

    names = [UNTRAINED, *dict.fromkeys(objectives)]
    jobs = [(name, seed) for seed in dict.fromkeys(seeds) for name in names]
    if backbone == "siglip2":  # its seeds differ in nothing before the training
        jobs = [job for job in jobs if job[0] != UNTRAINED or job[1] == seeds[0]]
    planned = []
    for name, seed in jobs:
        own = {**settings, "objective": name, "seed": seed, "learning_rate": config(name, seed).learning_rate}
        planned.append((own, _read(out / f"{name}-seed{seed}" / "result.json", own)))
    if any(result is None for _, result in planned):
        learned_from()  # a folder that is not there is missed now, not after hours
        judged_on()
    runs = []
    for own, result in tqdm(planned, desc="study", unit="run", disable=not progress_bar):
        name, seed = own["objective"], own["seed"]
        folder = out / f"{name}-seed{seed}"
        if result is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = _SYSTEMS[backbone][1](**settings["options"])
                if name != UNTRAINED:
                    recipe = EmbeddingRecipe(learned_from(), name, views=views, seed=seed)
                    train(model, recipe, folder, config(name, seed), progress_bar=progress_bar)
            result = {"settings": own, "figures": judge(model)}
            _write(folder / "result.json", result)
        figures = result["figures"]
        known = next(iter(next(iter(figures.values())).values()))
        averages = {figure: average(figures, figure) for figure in known}
        runs.append({"objective": name, "seed": seed, "average": averages, "figures": figures})
    figures = runs[0]["figures"]
    own = {"eval_data": settings["eval_data"]}
    baselines = _read(out / "baselines.json", own)
    if baselines is None:
        baselines = {"settings": own, "figures": evaluate_baselines(judged_on())}
        _write(out / "baselines.json", baselines)
    study: dict[str, Any] = {
        "settings": {**settings, "seeds": list(seeds)},
        "tasks": list(figures),
        "rows": list(next(iter(figures.values()))),
        "runs": runs,
        "summary": summarize(runs),
        "orderings": orderings(runs),
        "baselines": {
            name: {figure: average(every, figure) for figure in COMPARED}
            for name, every in baselines["figures"].items()
        },
    }
    _write(out / "study.json", study)
    write_atomic(out / "study.md", markdown(study).encode())
    plot_study(study, out / "study.png")
    return study


def _demonstrations(stream: Iterable[Trajectory], each: int | None, progress_bar: bool) -> list[Trajectory]:
    """The successful experts of a stream, of every task the first ``each`` by seed."""
    bar = tqdm(stream, desc="reading the demonstrations", unit=" trajectories", leave=False, disable=not progress_bar)
    experts = [with_sentences(t) for t in bar if t.tier == "expert" and t.success.any()]
    seeds: dict[str, set[int]] = {}
    for trajectory in experts:
        seeds.setdefault(trajectory.task, set()).add(trajectory.seed)
    kept = {task: sorted(own)[:each] for task, own in seeds.items()}
    return [trajectory for trajectory in experts if trajectory.seed in kept[trajectory.task]]


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call left, or None; a ValueError if it was made with other settings."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = document["settings"]
    changed = {key: (before.get(key), value) for key, value in settings.items() if before.get(key) != value}
    if changed:
        raise ValueError(f"{path} was made with other settings (then, now): {changed}; choose another out")
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
