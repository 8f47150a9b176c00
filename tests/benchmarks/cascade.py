"""How right the labels of a cascade are, against the share of them that the scripted oracle gave.

python tests/benchmarks/cascade.py --data data/eval --out runs/bench

Pairs as `vlp-gym policy` draws them. Labels are judged by the environment's own returns, as are the oracle's, which are
all right. For comparison, the same share: of pairs that the model is least sure of, where nothing is learned from the
oracle; drawn by chance; of those alone that the model is wrong about, if one knew; and in a cascade without the model.
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

SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
WAYS = {
    "cascade": "cascade",
    "routed": "uncertain pairs, nothing learned",
    "chance": "pairs by chance",
    "alone": "cascade without the model",
    "known": "if one knew which are wrong",
}
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
    any_pairs: bool = False
    """Pairs of any two rollouts, which are harder, instead of two kinds of them."""
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
            kinds = two_sets(trajectories, seed)
            if options.any_pairs:
                kinds = np.random.default_rng([seed, 2]).permutation(np.arange(len(kinds)) % 2)
            first, second = draw_pairs(store, kinds, options.pairs, rng)
            differ = first.returns != second.returns
            first, second = first[differ], second[differ]
            small = ModelLabeler(options.model, trajectories[0].canonical, soft=True)(first, second)
            rows += measured(task, seed, first, second, small)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "cascade.json", json.dumps({**vars(options), "rows": rows}, default=str).encode())
    print(table(rows, options.tasks))
    draw(rows, options.tasks, options.out / "cascade.png")


def measured(task: str, seed: int, first: Segments, second: Segments, small: Any) -> list[Row]:
    """The accuracy at each share, of each of `WAYS`."""
    truth = first.returns - second.returns
    right = agreement(small, truth)[0]
    rows = []
    for share in SHARES:
        row = {"task": task, "seed": seed, "share": share, "pairs": len(first), "cascade": right, "alone": 0.5}
        routed = small.copy()
        if share:
            sent = Gate(0.5, share).choose(small)
            routed[sent] = truth[sent] > 0
            for name, said in (("cascade", small), ("alone", np.full(len(first), 0.5))):
                labels = CascadeLabeler(Known(said), ScriptedLabeler(), Gate(0.5, share))(first, second)
                row[name] = agreement(labels, truth)[0]
        row |= {"routed": agreement(routed, truth)[0], "chance": right + (1 - right) * share}
        rows.append({**row, "known": min(1.0, right + share)})
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
    shown = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    lines = ["| right labels | " + " | ".join(f"{share:.0%}" for share in shown) + " |"]
    lines.append("| --- " * (len(shown) + 1) + "|")
    for title, task, name in [*((task, task, "cascade") for task in tasks), *((WAYS[n], None, n) for n in WAYS)]:
        values = [f"{100 * mean(rows, task, share, name):.1f}" for share in shown]
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    lines += ["", "| labels of the oracle for | " + " | ".join(WAYS.values()) + " |", "| --- " * 6 + "|"]
    for accuracy in (0.9, 0.95, 0.98, 0.99):
        shares = [f"{share_for(rows, None, accuracy, name):.0%}" for name in WAYS]
        lines.append(f"| {accuracy:.0%} right | " + " | ".join(shares) + " |")
    spread = np.std([[np.mean([r["cascade"] for r in rows if (r["share"], r["seed"]) == (share, seed)])
                      for share in shown] for seed in {r["seed"] for r in rows}], axis=0)  # fmt: skip
    return "\n".join([*lines, "", "spread of the choices of pairs: " + ", ".join(f"{100 * x:.1f}" for x in spread)])


def draw(rows: list[Row], tasks: tuple[str, ...], path: Path) -> None:
    """Accuracy over share, a curve for each task."""
    with figure_file(4.6, 3.2, path) as figure:
        axes = figure.subplots()
        for task, colour in zip(tasks, COLOURS, strict=False):
            shares = [100 * share for share in SHARES]
            curve = [100 * mean(rows, task, share, "cascade") for share in SHARES]
            axes.plot(shares, curve, color=colour, marker="o", markersize=3, label=task.removesuffix("-v3"))
            routed = [100 * mean(rows, task, share, "routed") for share in SHARES]
            axes.plot(shares, routed, color=colour, linestyle=":", linewidth=1)
        axes.set(xlabel="labels by the oracle, % (dotted: nothing learned)", ylabel="labels that are right, %")
        axes.legend(loc="lower right")


if __name__ == "__main__":
    main(tyro.cli(Options))
