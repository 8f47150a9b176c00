"""Labels of a reward model against those of a scripted teacher: success of the agents, and how many are right.

python tests/benchmarks/pebble.py --out runs/pebble

Each run is one of examples/pebble_button_press.py, minutes long; those that are there already are not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from vlp_gym.metaworld.instructions import instructions_for
from vlp_gym.storage import write_atomic
from vlp_gym.viz import plot_learning_curve

NAMES = {
    "vlp": "labels of the reward model",
    "scripted": "labels of the scripted teacher",
    "random": "labels of a coin",
}
ACCURACIES = {
    "label_accuracy": "Share of labels that the true return agrees with",
    "judged_accuracy": "Share of labels that success and the way left agree with",
}
EXAMPLE = Path(__file__).parents[2] / "examples" / "pebble_button_press.py"


@dataclass(frozen=True)
class Options:
    """Run the study and draw it."""

    tasks: tuple[str, ...] = ("drawer-close-v3", "faucet-close-v3", "window-open-v3")
    """Tasks that the model never saw."""
    labels: tuple[Literal["vlp", "scripted", "random"], ...] = ("vlp", "scripted")
    """Who labels; "random" is the control."""
    model: str = "vlp-compact-45"
    """Reward model."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the agents."""
    steps: int = 12_500
    """Decisions of each."""
    out: Path = Path("runs/pebble")
    """Where the runs, pebble.json, pebble_success.png and pebble_label_accuracy.png go."""


def main(options: Options) -> None:
    """Run what is missing, print a table, and draw the curves."""
    runs = [(task, who, seed) for seed in options.seeds for task in options.tasks for who in options.labels]
    for task, labels, seed in tqdm(runs, desc="runs"):
        folder = options.out / f"{task}-{labels}-{seed}"
        if not (folder / "result.json").exists():
            command = [sys.executable, str(EXAMPLE), "--task", task, "--instruction", instructions_for(task)[0]]
            command += [
                "--labels",
                labels,
                "--model",
                options.model,
                "--seed",
                str(seed),
                "--steps",
                str(options.steps),
            ]
            subprocess.run([*command, "--out", str(folder)], check=True)
    curves: dict[str, list[list[dict[str, Any]]]] = {NAMES[who]: [[] for _ in options.seeds] for who in options.labels}
    table: dict[str, dict[str, Any]] = {}
    for task, labels, seed in runs:
        result = json.loads((options.out / f"{task}-{labels}-{seed}" / "result.json").read_text())
        curve = curves[NAMES[labels]][options.seeds.index(seed)]
        curve += [{"step": row["step"], f"success/{task}": row["success"]} for row in result["history"]]
        row = table.setdefault(
            f"{task.removesuffix('-v3')}, {labels}", {"success": [], "best": [], **{name: [] for name in ACCURACIES}}
        )
        row["success"].append(result["success"])
        row["best"].append(max(evaluation["success"] for evaluation in result["history"]))
        for name in ACCURACIES:
            row[name].append(float(np.nanmean([session[name] for session in result["sessions"]])))
            if (
                labels != "scripted" or name == "judged_accuracy"
            ):  # the teacher agrees with the return that it is asked about
                curve += [{"step": s["step"], f"{name}/{task}": s[name]} for s in result["sessions"]]
    write_atomic(options.out / "pebble.json", json.dumps(table, indent=2).encode())
    for name, row in table.items():
        print(f"{name:30}", {key: [round(value, 2) for value in values] for key, values in row.items()})
    for figure, title in (
        ("success", "Success"),
        *ACCURACIES.items(),
    ):
        panels = {f"{figure}/{task}": task.removesuffix("-v3") for task in options.tasks}
        path = options.out / f"pebble_{figure}.png"
        plot_learning_curve(curves, path, title=title, quantities=panels, xlabel="decisions of the agent")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
