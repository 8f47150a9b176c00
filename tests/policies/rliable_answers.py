"""Makes rliable.json: scores, and what rliable says of them. It needs many packages, so the tests read the file.

pip install rliable
python tests/policies/rliable_answers.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("rliable.json")
SHAPES = ((5, 1), (3, 2), (5, 5), (10, 3))  # runs, tasks
REPEATS = 20_000


def main() -> None:
    """Ask rliable about success rates of 25 episodes."""
    from arch.bootstrap import IIDBootstrap
    from rliable import library, metrics

    made = IIDBootstrap.__init__  # since arch 6 it takes no random_state, which rliable 1.2 passes and does not use
    IIDBootstrap.__init__ = lambda own, *arrays, random_state=None: made(own, *arrays)
    np.random.seed(0)  # noqa: NPY002  # rliable draws from the global generator
    rng, cases = np.random.default_rng(0), []
    for shape in SHAPES:
        scores = rng.binomial(25, rng.uniform(0.1, 0.95, shape[1]), shape) / 25
        means, intervals = library.get_interval_estimates(
            {"ours": scores},
            lambda x: np.array([metrics.aggregate_iqm(x)]),
            reps=REPEATS,
        )
        cases.append(
            {"scores": scores.tolist(), "iqm": means["ours"].item(), "interval": intervals["ours"][:, 0].tolist()}
        )
    FILE.write_text(json.dumps({"rliable": version("rliable"), "repeats": REPEATS, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
