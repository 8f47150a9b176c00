"""The picture of the comparison of learning objectives: what was measured, seed by seed, beside what was published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.objectives.report import COMPARED, PUBLISHED
from vlp_gym.figures import COLOURS, GREY, INK, figure_file

_TITLES = {"consistency": "consistency with the true reward", "voc_spearman": "order of expert frames (VOC)"}


def plot_study(study: Mapping[str, Any], path: str | Path) -> None:
    """Draw one panel a figure: a bar from chance to the mean, a dot for each seed, a diamond for the published value.

    Args:
        study: what `tests.benchmarks.objectives.run.run` returned.
        path: picture to write (.png, .pdf or .svg), replaced atomically.

    Raises:
        MissingExtraError: without matplotlib.
    """
    names = list(study["summary"])
    y = np.arange(len(names))
    with figure_file(9.0, 1.5 + 0.32 * len(names), path) as figure:
        panels = figure.subplots(1, len(COMPARED), sharey=True, squeeze=False)[0]
        for axes, (own, said) in zip(panels, COMPARED.items(), strict=True):
            chance = 50.0 if own == "consistency" else 0.0
            means = np.array([100 * study["summary"][name][own][0] for name in names])
            axes.barh(y, means - chance, left=chance, height=0.6, color="#C9D7E3")
            dots = [(100 * run["average"][own], names.index(run["objective"])) for run in study["runs"]]
            axes.scatter(*np.array(dots).T, s=14, color=COLOURS[0], linewidth=0, label="a seed", zorder=3)
            published = [100 * PUBLISHED[said][name].mean() for name in names]
            axes.scatter(
                published, y, s=26, marker="D", facecolor="none", edgecolor=COLOURS[1], label="published", zorder=3
            )
            for (baseline, figures), line in zip(study["baselines"].items(), ((0, (4, 2)), (0, (1, 1.5))), strict=True):
                if own == "voc_spearman" and baseline == "clock":
                    continue  # 100 by definition
                axes.axvline(100 * figures[own], color=GREY, linewidth=1.0, linestyle=line, label=f"{baseline} alone")
            axes.axvline(chance, color=INK, linewidth=0.8)
            axes.set(title=_TITLES[own], xlabel="per cent", ylim=(len(names) - 0.4, -0.6))
            axes.set_yticks(y, names)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        settings = study["settings"]
        heading = f"learning objectives on one backbone ({settings['backbone']}), {len(settings['seeds'])} seeds"
        figure.suptitle(heading, x=0.01, ha="left", fontweight="bold")
