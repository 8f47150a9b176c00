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

from vlp_gym.data.instructions import instructions_for
from vlp_gym.storage import write_atomic
from vlp_gym.viz import plot_learning_curve

EXAMPLE = Path(__file__).parents[2] / "examples" / "pebble_button_press.py"


@dataclass(frozen=True)
class Options:
    """Run the study and draw it."""

    tasks: tuple[str, ...] = ("drawer-close-v3", "faucet-close-v3", "door-close-v3")
    """Tasks that the model never saw."""
    labels: tuple[Literal["vlp", "scripted", "random"], ...] = ("vlp", "scripted", "random")
    """Who labels; "random" is the control."""
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
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    table: dict[str, dict[str, Any]] = {}
    for task, labels, seed in runs:
        result = json.loads((options.out / f"{task}-{labels}-{seed}" / "result.json").read_text())
        name = f"{task.removesuffix('-v3')}, {labels}"
        # Of the teacher, who agrees with the return that it is asked about, no curve is needed.
        sessions = [] if labels == "scripted" else result["sessions"]
        curves.setdefault(name, []).append([*result["history"], *sessions])
        row = table.setdefault(name, {"success": [], "best": [], "label_accuracy": []})
        row["success"].append(result["success"])
        row["best"].append(max(evaluation["success"] for evaluation in result["history"]))
        row["label_accuracy"].append(float(np.mean([session["label_accuracy"] for session in result["sessions"]])))
    write_atomic(options.out / "pebble.json", json.dumps(table, indent=2).encode())
    for name, row in table.items():
        print(f"{name:30}", {key: [round(value, 2) for value in values] for key, values in row.items()})
    panels = {"success": "success rate", "label_accuracy": "label accuracy (true return)"}
    plot_learning_curve(
        curves,
        options.out / "pebble_curves.png",
        title="An agent that only hears which clip is better",
        quantities=panels,
        xlabel="decisions of the agent",
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
