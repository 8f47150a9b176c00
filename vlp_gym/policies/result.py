"""The result of a run: its figures as JSON, as a row of a Markdown table, and its learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlp_gym.evaluation.metrics import mean_and_spread
from vlp_gym.policies.labels import LabelReport
from vlp_gym.policies.scores import interquartile_interval, interquartile_mean, largest_mean
from vlp_gym.schema import Count, Document, Positive, Share
from vlp_gym.storage import write_atomic

Pair = tuple[float, float]


class PolicyResult(Document):
    """What ``result.json`` holds; all success is a share of episodes.

    Attributes:
        method: the learner.
        task: the task.
        source: who labelled or rewarded; "all" for plain imitation.
        labels: what is known about the labels; None without.
        options: of the learner.
        seeds: the seeds that were trained.
        episodes: episodes of each seed in an evaluation.
        horizon: most steps of an episode.
        steps: updates before each of the P evaluations.
        curve: success at each of them, ``[E][P]``.
        largest_mean: for each seed the largest mean of 8 neighbouring evaluations, as VLP reports.
        last: for each seed the last evaluation.
        iqm: interquartile mean of `largest_mean`.
        iqm_interval: its 95 % interval by a stratified bootstrap.
        data_success: share of the trajectories learned from that succeed.
        reward_accuracy: for each seed, the share of the pairs that the learned reward orders as labelled; None for
            methods without one.
        published: VLP's mean and standard deviation, in percent; None where it has none.
        cpu_minutes: computing time of the last call of the command, workers included.
    """

    format: Literal[1] = 1
    method: str
    task: str
    source: str
    labels: LabelReport | None
    options: dict[str, Any]
    seeds: list[int]
    episodes: Positive
    horizon: Positive
    steps: list[Count]
    curve: list[list[Share]]
    largest_mean: list[Share]
    last: list[Share]
    iqm: Share
    iqm_interval: tuple[Share, Share]
    data_success: Share
    reward_accuracy: list[Share] | None
    published: Pair | None
    cpu_minutes: float


def summarize(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of `PolicyResult` that come from evaluations.

    Args:
        evaluations: rows of "step" and the "success" of each seed.

    Raises:
        ValueError: there is no row.
    """
    if not evaluations:
        raise ValueError("expected at least one evaluation, got none")
    curve = np.array([row["success"] for row in evaluations]).T
    best = largest_mean(curve)
    low, high = interquartile_interval(best[:, None])
    return {
        "steps": [row["step"] for row in evaluations],
        "curve": curve.tolist(),
        "largest_mean": best.tolist(),
        "last": curve[:, -1].tolist(),
        "iqm": interquartile_mean(best),
        "iqm_interval": (low, high),
    }


def markdown(results: Sequence[PolicyResult]) -> str:
    """A table with a row for each run: percent, mean and standard deviation over the seeds, VLP's beside them."""
    lines = [
        "| task | method | labels or reward | largest mean of 8 | last | IQM [95 %] | published | data |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        low, high = (100 * end for end in r.iqm_interval)
        cells = [
            r.task.removesuffix("-v3"), r.method, r.source, spread(r.largest_mean), spread(r.last),
            f"{100 * r.iqm:.1f} [{low:.1f}, {high:.1f}]",
            "-" if r.published is None else "{:.1f} ± {:.1f}".format(*r.published), f"{100 * r.data_success:.1f}",
        ]  # fmt: skip
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


def write_result(result: PolicyResult, folder: Path) -> list[Path]:
    """Write ``result.json``, ``result.md`` and ``curve.png``; returns their paths."""
    from vlp_gym.viz import plot_learning_curve

    paths = [folder / name for name in ("result.json", "result.md", "curve.png")]
    write_atomic(paths[0], (result.model_dump_json(indent=2) + "\n").encode())
    write_atomic(paths[1], markdown([result]).encode())
    points = [[{"step": s, "success": x} for s, x in zip(result.steps, row, strict=True)] for row in result.curve]
    title = f"{result.method} on {result.task.removesuffix('-v3')}, {result.source}"
    plot_learning_curve({result.method: points}, paths[2], title=title, xlabel="updates")
    return paths


def table_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    mean, deviation, _ = mean_and_spread([100 * share for share in shares])
    return f"{mean:.1f} ± {deviation:.1f}"
