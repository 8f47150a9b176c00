"""Scores of demonstrations for GVL's uses: success detection, filtering and step weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import QueryError
from vlp_gym.evaluation.curation import THRESHOLD, advantage_weights, detect_success
from vlp_gym.evaluation.goals import expert_goals
from vlp_gym.evaluation.metrics import auc, voc
from vlp_gym.models.protocol import RewardModel

FRAMES = 16  # frames per video, evenly spread


def score_dataset(
    model: RewardModel,
    trajectories: Sequence[Trajectory],
    *,
    instruction: str | None = None,
    threshold: float = THRESHOLD,
    temperature: float = 1.0,
    device: str = "cpu",
    progress_bar: bool = True,
) -> list[dict[str, Any]]:
    """Values of up to 16 frames of each video, and GVL's three uses of them, as JSON values.

    The model scores the frames together in one window, as in GVL; a model without progress gives its preference for the
    video up to each frame.

    Args:
        model: any reward model.
        trajectories: the videos, of at least two frames each.
        instruction: instruction for all videos; None uses each one's canonical sentence.
        threshold: value-order correlation of a success, see `detect_success`.
        temperature: tau of the weights, in [0, 100], see `advantage_weights`.
        device: torch device of the model.
        progress_bar: show a progress bar.

    Returns:
        One row per video: "task", "tier", "seed", "camera", "instruction", "novelty" of its first frame (see
        `KnowingModel`; None if the model cannot say), "step" and "value" ``[T]``, "voc" (Spearman), "detected" (success
        by the values), "success" (by the environment), "weight" ``[T - 1]``, <= 100.

    Raises:
        ValueError: for a threshold or temperature out of range.
        DatasetError: without an instruction, if a video carries no sentences.
        QueryError: if the model answers NaN or inf.
    """
    if not 0 <= temperature <= 100:
        raise ValueError(f"temperature must be in [0, 100], got {temperature}")
    sentences = sorted({instruction or trajectory.canonical for trajectory in trajectories})
    scorer = VideoScorer(model, sentences, device, goals=expert_goals(trajectories))
    rows = []
    for trajectory in tqdm(trajectories, desc="scoring", unit="video", disable=not progress_bar):
        index = np.linspace(0, len(trajectory.frames) - 1, min(FRAMES, len(trajectory.frames))).round().astype(np.int64)
        scorer.open(trajectory.frames[index], trajectory.name)
        sentence = instruction or trajectory.canonical
        values = scorer.together(sentence)
        if values is None:
            values = scorer.values(sentence)
        if len(values) < 2:
            raise QueryError(f"{trajectory.name}: expected a video of at least 2 frames, got {len(values)}")
        rows.append(
            {
                **{key: getattr(trajectory, key) for key in ("task", "tier", "seed", "camera")},
                "instruction": sentence,
                "novelty": scorer.novelty(),
                "step": trajectory.step[index].tolist(),
                "value": values.tolist(),
                "voc": voc(values)["spearman"],
                "detected": detect_success(values, threshold=threshold),
                "success": bool(trajectory.success.any()),
                "weight": advantage_weights(values, temperature=temperature, max_weight=100.0).tolist(),
            }
        )
    return rows


def summarize(rows: Sequence[dict[str, Any]], threshold: float) -> str:
    """A Markdown table by tier, and the accuracy of the detected successes."""
    lines = ["| tier | videos | VOC, mean | detected | succeeded |", "|---|---|---|---|---|"]
    for tier in dict.fromkeys(row["tier"] for row in rows):
        own = [row for row in rows if row["tier"] == tier]
        shares = (np.mean([row[name] for row in own]) for name in ("voc", "detected", "success"))
        lines.append(f"| {tier} | {len(own)} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    succeeded = [row["success"] for row in rows]
    by_order = auc([row["voc"] for row in rows], succeeded)
    by_value = auc([row["value"][-1] for row in rows], succeeded)
    right = np.mean([row["detected"] == row["success"] for row in rows])
    positive = np.mean(succeeded)
    kept = [row for row in rows if row["detected"]]
    lines += [
        "",
        f"success detection at VOC >= {threshold:g}: accuracy {right:.3f} ({max(positive, 1 - positive):.3f} by always "
        f"saying the commoner answer), n = {len(rows)}",
        f"successes against failures (AUC): {by_order:.3f} by VOC, {by_value:.3f} by the value of the last frame",
        f"kept: {len(kept)} videos, of which {np.mean([row['success'] for row in kept]) if kept else 0:.0%} succeed; "
        f"{positive:.0%} of all do",
    ]
    return "\n".join(lines)


def plot_scores(rows: Sequence[dict[str, Any]], path: str | Path, *, threshold: float, title: str = "") -> None:
    """Plot the values over time by tier, and a histogram of the value-order correlation."""
    from vlp_gym.figures import COLOURS, figure_file

    with figure_file(9.0, 3.6, path) as figure:
        over_time, ordered = figure.subplots(1, 2)
        for number, tier in enumerate(dict.fromkeys(row["tier"] for row in rows)):
            own = [row for row in rows if row["tier"] == tier]
            moments = np.linspace(0, 1, FRAMES)
            curves = [np.interp(moments, np.linspace(0, 1, len(row["value"])), row["value"]) for row in own]
            mean, spread = np.mean(curves, 0), np.std(curves, 0)
            colour = COLOURS[number % len(COLOURS)]
            over_time.plot(moments, mean, color=colour, label=tier)
            over_time.fill_between(moments, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
            ordered.hist([row["voc"] for row in own], np.linspace(-1, 1, 21), color=colour, alpha=0.5, label=tier)
        ordered.axvline(threshold, color="0.3", linestyle="--", linewidth=1)
        over_time.set(xlabel="time in the video", ylabel="value", title=title)
        ordered.set(xlabel="value-order correlation (VOC)", ylabel="videos", title="dashed: taken for a success")
        over_time.legend()
