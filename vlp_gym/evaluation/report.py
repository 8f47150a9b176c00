"""The report of an evaluation as JSON, Markdown tables and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlp_gym.data.trajectory import VARIANT_KINDS
from vlp_gym.evaluation.verdict import verdict
from vlp_gym.models.protocol import NOVEL
from vlp_gym.storage import write_atomic

# group -> name in the result -> title
FIGURES: dict[str, dict[str, str]] = {
    "Preference labels": {
        "itp_scripted": "ITP, scripted labels",
        "itp_scripted_sum": "ITP, scripted labels, by the sum of the values over the steps",
        "itp_scripted_better_first": "ITP, scripted labels, the better one shown first (pairwise heads)",
        "itp_scripted_better_second": "ITP, scripted labels, the better one shown second",
        "itp_segments_tier": "ITP, tier labels of the same segments",
        "itp_segments_tier_sum": "ITP, tier labels of the same segments, by the sum",
        "itp_scripted_pixel": "ITP, scripted labels: pixel-difference baseline",
        "itp_tier": "ITP, tier labels",
        "itp_tier_held_out": "ITP, tier labels, held-out phrasings",
        "itp_tier_pixel": "ITP, tier labels: pixel-difference baseline",
        "itp_near_miss": "ITP, expert over near-miss",
        "itp_success": "ITP, success over failure (SPUR)",
        "label_correlation": "Correlation with scripted labels (VLP, table 6)",
        "ivp": "IVP, canonical sentence",
        "ivp_held_out": "IVP, held-out phrasings",
        "ivp_same_tier": "IVP, both videos of one tier",
        "ivp_random_over_expert": "IVP, random of the task over expert of another",
        "ivp_sibling": "IVP, same object, opposite task (experts)",
        "ilp_loss": "ILP loss (0.693 is best)",
        "itp_scripted_loss": "ITP loss, scripted labels",
        "ivp_loss": "IVP loss, canonical sentence",
        "average_loss": "Mean of these three losses (VLP, tables 7, 13, 14)",
        "itp_phrase": "ITP, tier labels: phrase",
        "itp_description": "ITP, tier labels: description",
        "itp_right_colour": "ITP, tier labels: right colour",
        "itp_wrong_colour": "ITP, tier labels: wrong colour",
    },
    "Kinds of sentences (VLP, table 7)": {
        name.format(kind): title.format(kind.replace("_", " "))
        for name, title in (
            ("itp_scripted_{}", "ITP, scripted labels: {}"),
            ("ivp_{}", "IVP: {}"),
            ("ilp_loss_{}", "ILP loss: {}"),
            ("average_loss_{}", "Mean of the three losses: {}"),
        )
        for kind in VARIANT_KINDS
    },
    "Progress": {
        "voc_expert_spearman": "VOC expert, Spearman",
        "voc_expert_pearson": "VOC expert, Pearson",
        "voc_expert_kendall": "VOC expert, Kendall",
        "voc_random_spearman": "VOC random, Spearman",
        "voc_random_pearson": "VOC random, Pearson",
        "voc_random_kendall": "VOC random, Kendall",
        "voc_gap": "VOC expert minus random (Spearman)",
        "voc_expert_pixel": "VOC expert: pixel-difference baseline",
        "voc_random_pixel": "VOC random: pixel-difference baseline",
        "reward_consistency": "Consistency with the true reward",
        "fixed_time": "Correlation with the true reward at a fixed time",
        "fixed_time_held": "the same, ended episodes held at their last frame",
        "reward_correlation_pearson": "Correlation with the true reward, Pearson (VLP, table 6)",
        "reward_correlation_spearman": "Correlation with the true reward, Spearman",
        "progress_error": "Squared error of progress, experts until success (SPUR)",
        "progress_order": "VOC of experts until success, Spearman (SPUR's rho)",
        "success_auc": "Success AUC of the final value",
        "near_below_moved": "Hand at the object below object on its way, share of experts",
        "near_over_done": "Value with the hand at the object over value when done (0.25 is right)",
    },
    "Bias controls": {
        "control_frozen": "VOC of a frozen video (0 is right)",
        "control_frozen_drift": "Drift over a frozen video / rise over the real one (0 is right)",
        "control_shuffled_shown": "VOC of a shuffled video, order shown (0 is right)",
        "control_shuffled_true": "VOC of a shuffled video, true order",
        "control_reversed": "VOC of a reversed video, order shown (negative is right)",
        "control_wrong_instruction": "Reward at the end, wrong over right sentence",
        "control_wrong_sibling": "Reward at the end, opposite task's over right sentence",
        "control_after_success": "Value after success minus value at success",
        "novelty": f"Distance of the first frames from the training data (1 is usual, over {NOVEL:g} is far)",
    },
}


def write_report(result: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write ``results.json``, ``results.md`` and ``results.png``, each atomically, and return their paths.

    Args:
        result: result of `vlp_gym.evaluation.evaluate.evaluate`.
        folder: output folder, created if missing.

    Raises:
        MissingExtraError: without matplotlib; the JSON and the tables are already written then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("results.json", "results.md", "results.png")]
    write_atomic(paths[0], (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    write_atomic(paths[1], markdown(result).encode())
    from vlp_gym.viz import plot_evaluation

    plot_evaluation(result, FIGURES, paths[2])
    return paths


def markdown(result: Mapping[str, Any]) -> str:
    """Tables of mean and spread over the tasks, followed by one column per task."""
    settings, tasks = result["settings"], result["tasks"]
    shown = tasks if len(tasks) <= 10 else []  # the JSON has all tasks
    lines = [
        f"# Evaluation of {settings['model']} on {result['split']}",
        "",
        f"{len(tasks)} tasks, seed {result['seed']}, {settings['pairs_per_task']} pairs a task, segments of "
        f"{settings['segment_steps']} steps paired by {settings['pairs_by']}, window {settings['window']} "
        f"({settings['history']}). Mean and sample standard deviation over tasks.",
        "",
        verdict(result),
    ]
    for group, figures in FIGURES.items():
        header = [group, "mean", "spread", *(task.removesuffix("-v3") for task in shown)]
        lines += ["", _row(header), _row(["---", *["---:"] * (len(header) - 1)])]
        for name, title in figures.items():
            values = [result["mean"][name], result["spread"][name], *(result["per_task"][t][name] for t in shown)]
            lines.append(_row([title, *(_number(value) for value in values)]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
