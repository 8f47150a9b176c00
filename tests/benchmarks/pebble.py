"""Labels of a reward model against those of a scripted teacher: success of the agents, and how many are right.

python tests/benchmarks/pebble.py --out runs/pebble

Each run is one of examples/pebble_button_press.py, minutes long; those that are there already are not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from vlp_gym.storage import write_atomic
from vlp_gym.viz import plot_learning_curve

EXAMPLE = Path(__file__).parents[2] / "examples" / "pebble_button_press.py"


@dataclass(frozen=True)
class Options:
    """Run the study and draw it."""

    tasks: dict[str, str] = field(
        default_factory=lambda: {
            "drawer-close-v3": "close the drawer",
            "faucet-close-v3": "close the faucet",
            "door-close-v3": "close the door",
        }
    )
    """Tasks that the model never saw, and their sentences."""
    model: str = "vlp-compact-45"
    """Reward model."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the agents."""
    steps: int = 8_000
    """Decisions of each."""
    out: Path = Path("runs/pebble")
    """Where the runs, pebble.json and pebble_curves.png go."""


def main(options: Options) -> None:
    """Run what is missing, print a table, and draw the curves."""
    runs = [(task, labels, seed) for seed in options.seeds for task in options.tasks for labels in ("scripted", "vlp")]
    for task, labels, seed in tqdm(runs, desc="runs"):
        folder = options.out / f"{task}-{labels}-{seed}"
        if not (folder / "result.json").exists():
            command = [sys.executable, str(EXAMPLE), "--task", task, "--instruction", options.tasks[task]]
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
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    table: dict[str, dict[str, Any]] = {}
    for task, labels, seed in runs:
        result = json.loads((options.out / f"{task}-{labels}-{seed}" / "result.json").read_text())
        name = f"{task.removesuffix('-v3')}, {labels}"
        # The teacher agrees with the return that it is asked about: no curve for that.
        sessions = result["sessions"] if labels == "vlp" else []
        curves.setdefault(name, []).append([*result["history"], *sessions])
        row = table.setdefault(name, {"success": [], "best": [], "label_accuracy": []})
        row["success"].append(result["success"])
        row["best"].append(max(evaluation["success"] for evaluation in result["history"]))
        weights = np.diff([0, *(session["labels"] for session in result["sessions"])])
        accuracies = [session["label_accuracy"] for session in result["sessions"]]
        row["label_accuracy"].append(float(np.average(accuracies, weights=weights)))
    write_atomic(options.out / "pebble.json", json.dumps(table, indent=2).encode())
    for name, row in table.items():
        print(f"{name:30}", {key: [round(value, 2) for value in values] for key, values in row.items()})
    panels = {"success": "success rate", "label_accuracy": "labels that the environment's return agrees with"}
    plot_learning_curve(
        curves,
        options.out / "pebble_curves.png",
        title="An agent that only hears which clip is better",
        quantities=panels,
        xlabel="decisions of the agent",
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
