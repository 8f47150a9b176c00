"""VLP's ablations, tables 13 and 14: the variants, the published figures, and which orders hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from vlp_gym.evaluation.metrics import mean_and_spread
from vlp_gym.schema import Document, Positive

FIGURES = {
    "itp": ("ITP, %", "itp_scripted", 100.0),
    "ivp": ("IVP, %", "ivp", 100.0),
    "ilp": ("ILP loss", "ilp_loss", 1.0),
    "average": ("average loss", "average_loss", 1.0),
}
"""Column -> title, name in an evaluation, factor."""


@dataclass(frozen=True)
class Variant:
    """One training of VLP.

    Attributes:
        published: ITP and IVP accuracy in percent, ILP loss and the average of the three losses.
        options: differences from `VLPOptions`.
    """

    published: tuple[float, float, float, float]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


FULL = "full"
VARIANTS: dict[str, Variant] = {
    "no-ilp": Variant((95.4, 74.1, 0.728, 0.618), {"lambda_ilp": 0.0}),
    "strong-ilp": Variant((85.8, 74.7, 0.702, 0.578), {"lambda_ilp": 0.5}),
    "no-ivp": Variant((96.2, 63.0, 0.775, 0.646), {"lambda_ivp": 0.0}),
    "strong-ivp": Variant((95.8, 96.5, 0.699, 0.554), {"lambda_ivp": 1.0}),
    "half-data": Variant((94.2, 89.6, 0.699, 0.557), {"data_share": 0.5}),
    "most-data": Variant((95.2, 89.7, 0.707, 0.555), {"data_share": 0.75}),
    FULL: Variant((97.4, 91.7, 0.705, 0.555)),
}
"""Lambda_1 weighs the loss between languages (ILP), lambda_2 the one between videos of tasks (IVP)."""
TABLES = {
    "table 13, weights of the losses": ("no-ilp", "strong-ilp", "no-ivp", "strong-ivp", FULL),
    "table 14, share of the data": ("half-data", "most-data", FULL),
}


class Judged(Document):
    """One trained and judged variant, the file ``judged.json`` in its folder.

    Attributes:
        variant: name in `VARIANTS`.
        seed: seed of its training.
        settings: what it was made with.
        figures: column of `FIGURES` -> mean over the tasks; None where the data cannot give it.
    """

    format: Literal[1] = 1
    variant: str
    seed: int
    settings: dict[str, str | int | float]
    figures: dict[str, float | None]


class Study(Document):
    """The whole study, the file ``result.json``.

    Attributes:
        settings: what all runs share.
        judged: all runs.
        pairs_of_figures: table -> column -> pairs of variants that the paper puts in an order.
        held: table -> column -> those of them that are in the paper's order here, by the mean over seeds.
        held_in_every_seed: table -> column -> those that are in the paper's order in each seed alone.
    """

    format: Literal[1] = 1
    settings: dict[str, str | int | float]
    judged: list[Judged]
    pairs_of_figures: dict[str, dict[str, Positive]]
    held: dict[str, dict[str, list[tuple[str, str]]]]
    held_in_every_seed: dict[str, dict[str, list[tuple[str, str]]]]


def published_order(names: Sequence[str], column: str) -> list[tuple[str, str]]:
    """Pairs of variants, the one with the smaller published figure first; equal ones are left out.

    >>> published_order(["most-data", "full", "half-data"], "average")
    [('most-data', 'half-data'), ('full', 'half-data')]
    """
    place = list(FIGURES).index(column)
    pairs = [sorted(pair, key=lambda name: VARIANTS[name].published[place]) for pair in combinations(names, 2)]
    return [(a, b) for a, b in pairs if VARIANTS[a].published[place] < VARIANTS[b].published[place]]


def summarize(judged: Sequence[Judged], settings: Mapping[str, str | int | float]) -> Study:
    """Compare the orders of the figures with the published ones.

    Args:
        judged: every run; a table's order is about those of its variants that are there.
        settings: what they share.
    """
    pairs: dict[str, dict[str, int]] = {}
    held: dict[str, dict[str, list[tuple[str, str]]]] = {}
    always: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for table, names in TABLES.items():
        there = [name for name in names if any(each.variant == name for each in judged)]
        for column in FIGURES:
            curves = {name: _over_seeds(judged, name, column) for name in there}
            order = [(a, b) for a, b in published_order(there, column) if curves[a] and curves[b]]
            if not order:
                continue
            pairs.setdefault(table, {})[column] = len(order)
            held.setdefault(table, {})[column] = [
                (a, b) for a, b in order if np.mean([*curves[a].values()]) < np.mean([*curves[b].values()])
            ]
            always.setdefault(table, {})[column] = [
                (a, b)
                for a, b in order
                if all(curves[a][seed] < curves[b][seed] for seed in curves[a].keys() & curves[b])
            ]
    return Study(
        settings=dict(settings), judged=list(judged),
        pairs_of_figures=pairs, held=held, held_in_every_seed=always,
    )  # fmt: skip


def markdown(study: Study) -> str:
    """Both tables, each figure beside the published one in brackets, and the orders that hold."""
    seeds = sorted({each.seed for each in study.judged})
    shown = ", ".join(f"{name} {value}" for name, value in study.settings.items())
    lines = [
        "# VLP's ablations",
        "",
        f"Seeds {', '.join(map(str, seeds))}; {shown}. Mean and sample standard deviation over seeds of the mean over "
        "tasks; the published figures are in brackets.",
    ]
    for table, names in TABLES.items():
        there = [name for name in names if any(each.variant == name for each in study.judged)]
        if not there:
            continue
        lines += ["", f"## {table[0].upper()}{table[1:]}", ""]
        lines += [_row(["variant", *(title for title, _, _ in FIGURES.values())]), "|---" * 5 + "|"]
        for name in there:
            cells = zip(FIGURES, VARIANTS[name].published, strict=True)
            lines.append(_row([_said(name), *(_cell(study, name, column, figure) for column, figure in cells)]))
        lines.append("")
        for column, count in study.pairs_of_figures.get(table, {}).items():
            held, always = study.held[table][column], study.held_in_every_seed[table][column]
            missed = [pair for pair in published_order(there, column) if pair not in held]
            said = "; not so: " + ", ".join(f"{a} < {b}" for a, b in missed) if missed else ""
            lines.append(
                f"- {FIGURES[column][0]}: {len(held)} of {count} pairs of variants in the published order, "
                f"{len(always)} of them in every seed{said}."
            )
    return "\n".join(lines) + "\n"


def _over_seeds(judged: Sequence[Judged], name: str, column: str) -> dict[int, float]:
    """Seed -> figure of a variant, where the data give it."""
    found = {each.seed: each.figures[column] for each in judged if each.variant == name}
    return {seed: value for seed, value in found.items() if value is not None}


def _cell(study: Study, name: str, column: str, published: float) -> str:
    values = list(_over_seeds(study.judged, name, column).values())
    digits = 1 if FIGURES[column][2] == 100 else 3
    if not values:
        return f"- ({published:.{digits}f})"
    mean, spread, count = mean_and_spread(values)
    return f"{mean:.{digits}f}{f' ± {spread:.{digits}f}' if count > 1 else ''} ({published:.{digits}f})"


def _said(name: str) -> str:
    options = {"lambda_ilp": 0.1, "lambda_ivp": 0.5, "data_share": 1.0, **VARIANTS[name].options}
    return (
        f"{name}: lambda {options['lambda_ilp']:g}, {options['lambda_ivp']:g}; {options['data_share']:.0%} of the data"
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
