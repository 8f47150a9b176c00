"""The comparison of learning objectives as a table beside the published one, and which published orderings hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from vlp_gym.evaluation.metrics import mean_and_spread

HELD_OUT = ("button-press-v3", "drawer-open-v3", "door-open-v3")
"""The tasks that the paper judges on, in the order of its tables."""

# Tables 1 and 2 of "Revisiting the learning objectives of vision-language reward models", per cent: button-press,
# drawer-open, door-open, and of each views 1, 2, 3 and multi-view. "untrained" is its SigLIP2 column.
_CONSISTENCY = {
    "untrained": "45.15 44.81 44.83 40.50 42.91 41.55 43.60 42.13 50.02 55.04 54.44 57.27",
    "triplet": "75.36 74.15 74.29 76.44 69.01 67.82 66.33 67.01 62.78 64.27 64.04 65.02",
    "tcn-text": "69.63 69.51 70.27 72.24 64.52 61.83 61.73 62.26 64.80 65.46 63.98 64.96",
    "r3m": "74.42 71.38 72.07 73.76 65.71 63.25 61.93 62.24 61.04 62.33 63.64 65.02",
    "vip-text": "57.07 57.09 56.03 57.83 65.58 60.45 58.49 56.43 53.17 56.80 58.40 60.12",
    "vip-text+vip": "57.09 56.18 53.69 55.31 61.76 59.88 56.84 55.25 49.42 54.22 55.04 58.57",
    "liv": "55.29 54.28 54.79 55.51 50.56 50.77 49.51 47.88 49.28 50.37 52.44 54.21",
}
_VOC = {
    "untrained": "-72.80 -19.50 -11.51 -56.30 -56.76 -29.86 19.7 -28.84 -14.8 7.84 29.52 11.82",
    "triplet": "95.47 90.03 81.72 95.07 87.67 76.94 86.76 90.17 26.01 22.11 -7.01 6.70",
    "tcn-text": "89.08 90.92 82.55 94.53 82.17 80.92 75.88 86.14 -42.27 42.66 31.43 10.40",
    "r3m": "81.78 90.95 79.10 86.87 87.70 83.71 80.88 87.22 2.21 7.7 33.7 14.33",
    "vip-text": "27.39 54.95 77.94 68.21 65.68 69.87 67.54 77.59 -25.8 -33.03 -30.36 -31.39",
    "vip-text+vip": "-21.03 56.60 63.89 56.72 54.28 53.92 64.17 75.17 -0.04 -15.03 -27.62 -18.94",
    "liv": "16.67 40.71 32.12 42.9 61.99 66.99 55.47 80.40 17.51 -5.99 -0.28 -0.64",
}
PUBLISHED = {
    name: {objective: np.array(text.split(), np.float64).reshape(3, 4) / 100 for objective, text in table.items()}
    for name, table in (("consistency", _CONSISTENCY), ("voc", _VOC))
}
"""Figure -> objective -> float ``[3, 4]``, shares: the three held-out tasks by three views and multi-view."""

# figure of the runs -> the published one that it is compared with (the paper does not say which VOC is its own)
COMPARED = {"consistency": "consistency", "voc_spearman": "voc"}
_CONTROLS = {
    "voc_pearson": "VOC, Pearson",
    "voc_kendall": "VOC, Kendall",
    "frozen": "VOC of a frozen video",
    "shuffled": "VOC of a shuffled video, order shown",
    "reversed": "VOC of a reversed video, order shown",
    "voc_wrong": "VOC, wrong sentence",
    "consistency_wrong": "consistency, wrong sentence",
}


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean, spread (sample standard deviation) and number of seeds, by objective and figure.

    Args:
        runs: with "objective", "seed" and "average" {figure: value}.
    """
    summary: dict[str, dict[str, list[float]]] = {}
    for objective in dict.fromkeys(run["objective"] for run in runs):
        own = [run["average"] for run in runs if run["objective"] == objective]
        summary[objective] = {name: list(mean_and_spread([one[name] for one in own])) for name in own[0]}
    return summary


def orderings(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Whether the objectives stand in the published order, by figure.

    Args:
        runs: as `summarize` takes them; what is not one of the paper's trained objectives is left out.

    Returns:
        figure -> "kendall_tau" between the published and the measured means (None for fewer than two objectives) and
        "pairs", each with the published "better" and "worse" objective, the "published" difference, the "measured" one
        as mean and spread over seeds, in how many "seeds" it is positive out of how many ("of"), and "holds": whether
        the mean is.
    """
    trained = [name for name in PUBLISHED["consistency"] if name != "untrained"]
    found = [name for name in trained if any(run["objective"] == name for run in runs)]
    result: dict[str, dict[str, Any]] = {}
    for figure, published in COMPARED.items():
        said = {name: float(PUBLISHED[published][name].mean()) for name in found}
        measured = {
            name: {run["seed"]: run["average"][figure] for run in runs if run["objective"] == name} for name in found
        }
        means = [float(np.mean(list(measured[name].values()))) for name in found]
        tau = stats.kendalltau(list(said.values()), means).statistic if len(found) > 1 else np.nan
        pairs = []
        for pair in combinations(found, 2):
            better, worse = sorted(pair, key=lambda name: -said[name])
            shared = sorted(measured[better].keys() & measured[worse].keys())
            gaps = [measured[better][seed] - measured[worse][seed] for seed in shared]
            if not gaps:
                continue
            mean, spread, _ = mean_and_spread(gaps)
            pairs.append(
                {
                    "better": better,
                    "worse": worse,
                    "published": said[better] - said[worse],
                    "measured": [mean, spread],
                    "seeds": sum(gap > 0 for gap in gaps),
                    "of": len(gaps),
                    "holds": mean > 0,
                }
            )
        result[figure] = {"kendall_tau": float(tau) if np.isfinite(tau) else None, "pairs": pairs}
    return result


def markdown(study: Mapping[str, Any]) -> str:
    """The study as Markdown: results beside the published ones, orderings, controls, and every task and view."""
    settings, summary = study["settings"], study["summary"]
    tasks, rows = list(study["tasks"]), list(study["rows"])
    lines = ["# Learning objectives, all else equal", "", *_described(settings, tasks, rows), ""]
    lines += ["| objective | consistency | published | VOC (Spearman) | published |", "|---|---|---|---|---|"]
    for name, figures in summary.items():
        cells = [f"{_share(figures[own])} | {100 * PUBLISHED[said][name].mean():.1f}" for own, said in COMPARED.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, figures in study["baselines"].items():
        lines.append(f"| ({name}) | {_share(figures['consistency'])} | | {_share(figures['voc_spearman'])} | |")
    lines += ["", "Per cent, mean over tasks, views and multi-view; ± is the standard deviation over seeds.", ""]
    lines += ["## Published orderings", ""]
    for figure, order in study["orderings"].items():
        lines += [*_ordering_lines(figure, order), ""]
    lines += ["## Other coefficients and controls", "", f"| objective | {' | '.join(_CONTROLS.values())} |"]
    lines.append("|---" * (1 + len(_CONTROLS)) + "|")
    for name, figures in summary.items():
        lines.append(f"| {name} | {' | '.join(_share(figures[control]) for control in _CONTROLS)} |")
    for figure, published in COMPARED.items():
        lines += ["", f"## By task and view: {figure.replace('_', ' ')}", ""]
        lines += [f"| task | view | {' | '.join(summary)} |", "|---" * (2 + len(summary)) + "|"]
        for task in tasks:
            for row in rows:
                cells = [_share(_over_seeds(study["runs"], name, task, row, figure)) for name in summary]
                lines.append(f"| {task} | {row} | {' | '.join(cells)} |")
            said = [PUBLISHED[published][name][HELD_OUT.index(task)].mean() for name in summary]
            lines.append(f"| {task} | published, mean | {' | '.join(map(_share, map(float, said)))} |")
    return "\n".join(lines) + "\n"


def _described(settings: Mapping[str, Any], tasks: Sequence[str], rows: Sequence[str]) -> list[str]:
    seeds = settings["seeds"]
    return [
        f"Backbone {settings['backbone']}, {settings['steps']} steps of {settings['batch_size']} samples, seeds "
        f"{', '.join(map(str, seeds))}; the samples, their views and their sentences are the same for every objective. "
        f"Trained on {len(settings['tasks'])} tasks, judged on {', '.join(tasks)}, which no training saw; views: "
        f"{', '.join(rows)}. Published: SigLIP2-base with LoRA on the paper's own rollouts."
    ]


def _ordering_lines(figure: str, order: Mapping[str, Any]) -> list[str]:
    pairs, tau = order["pairs"], order["kendall_tau"]
    held = sum(pair["holds"] for pair in pairs)
    always = sum(pair["seeds"] == pair["of"] for pair in pairs)
    lines = [
        f"**{figure.replace('_', ' ')}**: Kendall's tau between the orders is {'–' if tau is None else f'{tau:.2f}'}; "
        f"{held} of {len(pairs)} published pairs hold on the mean, {always} in every seed.",
        "",
        "| published | difference | measured | seeds | holds |",
        "|---|---|---|---|---|",
    ]
    for pair in pairs:
        lines.append(
            f"| {pair['better']} > {pair['worse']} | {100 * pair['published']:.1f} | {_share(pair['measured'])} | "
            f"{pair['seeds']} of {pair['of']} | {'yes' if pair['holds'] else 'no'} |"
        )
    return lines


def _over_seeds(
    runs: Sequence[Mapping[str, Any]], name: str, task: str, row: str, figure: str
) -> tuple[float, float, int]:
    return mean_and_spread([run["figures"][task][row][figure] for run in runs if run["objective"] == name])


def _share(value: Any) -> str:
    """Per cent of a number, or of (mean, spread, ...) where there are several seeds."""
    if isinstance(value, (int, float)):
        return f"{100 * value:.1f}"
    mean, spread, *count = value
    return f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if not count or count[0] > 1 else "")
