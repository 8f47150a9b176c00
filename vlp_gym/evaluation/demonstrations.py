"""What a reward model says of many demonstrations: which succeed, which to keep, how much each step counts (GVL)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import QueryError
from vlp_gym.evaluation.curation import THRESHOLD, advantage_weights, detect_success
from vlp_gym.evaluation.goals import expert_goals
from vlp_gym.evaluation.metrics import auc, voc
from vlp_gym.models.protocol import RewardModel

FRAMES = 16  # of each video, spread over it


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

    The frames are shown to the model together, in one window, as GVL shows them; a model without progress is asked for
    its preference of the video up to each of them.

    Args:
        model: any reward model.
        trajectories: the videos, of at least two frames each.
        instruction: of all of them; None takes each one's own first sentence.
        threshold: of the value-order correlation, see `detect_success`.
        temperature: tau of the weights, see `advantage_weights`; at most 100.
        device: where the model goes.
        progress_bar: show one.

    Returns:
        One row a video: "task", "tier", "seed", "camera", "step" and "value" ``[T]``, "voc" (Spearman), "detected" (a
        success, by the values), "success" (by the environment) and "weight" ``[T - 1]``, at most 100.

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
        values = _values(scorer, sentence, trajectory.name)
        rows.append(
            {
                **{key: getattr(trajectory, key) for key in ("task", "tier", "seed", "camera")},
                "instruction": sentence,
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
    """A Markdown table by tier, and how often the detected successes are those of the environment."""
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
    """Draw the values by tier over time, and the distribution of the value-order correlation."""
    from vlp_gym.viz import COLOURS, figure_file

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


def _values(scorer: VideoScorer, sentence: str, name: str) -> NDArray[np.float64]:
    values = scorer.together(sentence)
    if values is None:
        values = scorer.values(sentence)
    if len(values) < 2:
        raise QueryError(f"{name}: expected a video of at least 2 frames, got {len(values)}")
    return values
