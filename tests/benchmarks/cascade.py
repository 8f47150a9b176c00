"""How right the labels of a cascade are, against the share of them that the scripted oracle gave.

python tests/benchmarks/cascade.py --data data/eval --out runs/bench

Pairs as `vlp-gym policy` draws them. Labels are judged by the environment's own returns, as are the oracle's, which are
all right. For comparison, the same share is drawn by chance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from vlp_gym.commands.data import load
from vlp_gym.figures import COLOURS, figure_file
from vlp_gym.policies.labels import draw_pairs, store_of, two_sets
from vlp_gym.preferences import CascadeLabeler, Gate, ModelLabeler, ScriptedLabeler, Segments, agreement
from vlp_gym.storage import write_atomic

SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Measure the cascade of a model and the scripted oracle."""

    data: Path = Path("data/eval")
    """Rollouts that the model was not trained on."""
    tasks: tuple[str, ...] = ("button-press-v3", "door-close-v3", "drawer-close-v3")
    """Tasks that the model was not trained on."""
    model: str = "vlp-compact-45"
    """The small model."""
    pairs: int = 400
    """Of each task and seed."""
    length: int = 50
    """Steps of a segment."""
    seeds: int = 3
    """Choices of pairs."""
    out: Path = Path("runs/bench")
    """Where cascade.json and cascade.png go."""


class Known:
    """Labels that were asked for before: the model does not look again for every share."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __call__(self, first: Segments, second: Segments) -> Any:
        return self.labels


def main(options: Options) -> None:
    """Measure, print a table, draw."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for task in tqdm(options.tasks, unit="task"):
        trajectories = load(options.data, tasks=[task])
        store = store_of(trajectories, options.length)
        for seed in range(options.seeds):
            rng = np.random.default_rng([seed, 1])
            first, second = draw_pairs(store, two_sets(trajectories, seed), options.pairs, rng)
            differ = first.returns != second.returns
            first, second = first[differ], second[differ]
            small = ModelLabeler(options.model, trajectories[0].canonical, soft=True)(first, second)
            rows += measured(task, seed, first, second, small)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "cascade.json", json.dumps({**vars(options), "rows": rows}, default=str).encode())
    print(table(rows, options.tasks))
    draw(rows, options.tasks, options.out / "cascade.png")


def measured(task: str, seed: int, first: Segments, second: Segments, small: Any) -> list[Row]:
    """The accuracy at each share: of the least certain pairs, and of as many by chance."""
    truth = first.returns - second.returns
    rows = []
    for share in SHARES:
        labels = small
        if share:
            labels = CascadeLabeler(Known(small), ScriptedLabeler(), Gate(0.5, share))(first, second)
        alone = agreement(small, truth)[0]
        row = {"task": task, "seed": seed, "share": share, "pairs": len(first), "chance": alone + (1 - alone) * share}
        rows.append({**row, "cascade": agreement(labels, truth)[0]})
    return rows


def mean(rows: list[Row], task: str | None, share: float, name: str) -> float:
    """The mean over seeds, and over tasks if none is named."""
    return float(np.mean([row[name] for row in rows if row["share"] == share and task in (None, row["task"])]))


def share_for(rows: list[Row], task: str | None, accuracy: float, name: str) -> float:
    """The share that an accuracy needs, interpolated."""
    curve = np.maximum.accumulate([mean(rows, task, share, name) for share in SHARES])
    return 0.0 if curve[0] >= accuracy else float(np.interp(accuracy, curve, SHARES))


def table(rows: list[Row], tasks: tuple[str, ...]) -> str:
    """Markdown: label accuracy at some shares, and the shares that some accuracies need."""
    shown = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    lines = ["| task | " + " | ".join(f"{share:.0%}" for share in shown) + " |", "| --- " * (len(shown) + 1) + "|"]
    for task in (*tasks, None):
        for name in ("cascade", "chance") if task is None else ("cascade",):
            values = [f"{100 * mean(rows, task, share, name):.1f}" for share in shown]
            lines.append(f"| {task or f'all, {name}'} | " + " | ".join(values) + " |")
    lines += ["", "| accuracy | cascade | by chance |", "| --- | --- | --- |"]
    for accuracy in (0.9, 0.95, 0.98, 0.99):
        shares = [f"{share_for(rows, None, accuracy, name):.0%}" for name in ("cascade", "chance")]
        lines.append(f"| {accuracy:.0%} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def draw(rows: list[Row], tasks: tuple[str, ...], path: Path) -> None:
    """Accuracy over share, a curve for each task."""
    with figure_file(4.6, 3.2, path) as figure:
        axes = figure.subplots()
        for task, colour in zip(tasks, COLOURS, strict=False):
            shares = [100 * share for share in SHARES]
            curve = [100 * mean(rows, task, share, "cascade") for share in SHARES]
            axes.plot(shares, curve, color=colour, marker="o", markersize=3, label=task.removesuffix("-v3"))
            chance = [100 * mean(rows, task, share, "chance") for share in SHARES]
            axes.plot(shares, chance, color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel="labels by the oracle, % (dotted: drawn by chance)", ylabel="labels that are right, %")
        axes.legend(loc="lower right")


if __name__ == "__main__":
    main(tyro.cli(Options))
