"""Tables of many runs, as VLP's tables 2, 3 and 4: tasks below each other, methods and labels beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlp_gym.errors import CheckpointError
from vlp_gym.policies.result import PolicyResult, spread, table_row
from vlp_gym.policies.saved import read_json

KINDS = {
    "Policies from preferences (VLP's tables 2 and 4)": ("p-iql", "ipl", "cpl"),
    "Policies from rewards (VLP's table 3)": ("iql", "awr"),
    "Imitation, for comparison": ("bc",),
}
Column = tuple[str, str]
"""Method, and who labelled or rewarded."""


def read_results(folder: str | Path) -> list[PolicyResult]:
    """The results of all runs below a folder, sorted by task, method and source.

    Raises:
        CheckpointError: there is none, a ``result.json`` is damaged, or two are of one task, method and source.
    """
    found: dict[tuple[str, str, str], tuple[Path, PolicyResult]] = {}
    for path in sorted(Path(folder).glob("**/result.json")):
        result = read_json(PolicyResult, path)
        key = result.task, result.method, result.source
        if key in found:
            raise CheckpointError(
                f"{path} and {found[key][0]} are both of {', '.join(key)}; name a folder with one of them"
            )
        found[key] = path, result
    if not found:
        raise CheckpointError(f"{folder}: expected runs of `vlp-gym policy` with a result.json, found none")
    return [found[key][1] for key in sorted(found)]


def tables(results: Sequence[PolicyResult]) -> str:
    """Markdown tables of success in percent: the largest mean of 8 evaluations, with the last one in brackets.

    Each has its own average over the tasks, and says which runs are missing.
    """
    parts = []
    for title, methods in KINDS.items():
        chosen = [result for result in results if result.method in methods]
        if chosen:
            parts.append(f"## {title}\n\n{_table(chosen, methods)}")
    return "\n".join(parts)


def _table(results: Sequence[PolicyResult], methods: Sequence[str]) -> str:
    cells = {(r.task, (r.method, r.source)): r for r in results}
    tasks = sorted({task for task, _ in cells})
    columns = sorted({column for _, column in cells}, key=lambda column: (methods.index(column[0]), column[1]))
    lines = [
        table_row(["task", *(f"{method}, {source}" for method, source in columns), "data"]),
        table_row(["---", *["---:"] * (len(columns) + 1)]),
    ]
    for task in tasks:
        row = [cells.get((task, column)) for column in columns]
        share = next(result.data_success for result in row if result is not None)
        lines.append(table_row([task.removesuffix("-v3"), *map(_cell, row), f"{100 * share:.1f}"]))
    lines.append(table_row(["mean", *(_average([cells.get((task, c)) for task in tasks]) for c in columns), ""]))
    missing = [f"{task} {method} {source}" for task in tasks for method, source in columns
               if (task, (method, source)) not in cells]  # fmt: skip
    text = "\n".join(lines) + "\n"
    return f"{text}\nMissing: {'; '.join(missing)}.\n" if missing else text


def _cell(result: PolicyResult | None) -> str:
    if result is None:
        return "-"
    printed = "" if result.published is None else " / {:.1f} ± {:.1f}".format(*result.published)
    return f"{spread(result.largest_mean)} ({100 * float(np.mean(result.last)):.1f}){printed}"


def _average(results: Sequence[PolicyResult | None]) -> str:
    """Over the tasks; "-" where one is missing, as it would be another average."""
    there = [result for result in results if result is not None]
    if len(there) < len(results):
        return "-"
    best, last = (100 * float(np.mean([getattr(r, name) for r in there])) for name in ("largest_mean", "last"))
    published = [result.published[0] for result in there if result.published is not None]
    printed = f" / {np.mean(published):.1f}" if len(published) == len(there) else ""
    return f"{best:.1f} ({last:.1f}){printed}"
