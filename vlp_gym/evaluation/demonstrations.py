"""Scores of demonstrations for GVL's uses: success detection, filtering and step weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import AnswerError, QueryError, reason
from vlp_gym.evaluation.curation import THRESHOLD, advantage_weights, detect_success
from vlp_gym.evaluation.metrics import auc, voc, voc_by_position
from vlp_gym.evaluation.score_log import Scored, ScoreLog
from vlp_gym.models.prompted.base import PromptedModel
from vlp_gym.models.protocol import RewardModel
from vlp_gym.prompting.success import ask_success

FRAMES = 16  # frames per video, evenly spread
Ask = Literal["no", "plain", "reasoning"]
REFUSED = -1.0  # the VOC of a video that a chat model refuses to judge


def score_dataset(
    model: RewardModel,
    trajectories: Iterable[Trajectory],
    *,
    instruction: str | None = None,
    goals: Mapping[str, NDArray[np.uint8]] | None = None,
    threshold: float = THRESHOLD,
    temperature: float = 1.0,
    device: str = "cpu",
    progress_bar: bool = True,
    log: ScoreLog | None = None,
    frames: int = FRAMES,
    ask: Ask = "no",
) -> list[dict[str, Any]]:
    """Values of some frames of each video, and GVL's three uses of them, as JSON values.

    The model scores the frames together in one window, as in GVL; a model without progress gives its preference for the
    video up to each frame.

    GVL tells the chat model that the first frame is at 0 %, so every VOC leaves that frame out: with it, a model that
    guesses has a mean VOC of 0.18. A video that a chat model refuses, or answers in no form that can be read, has a VOC
    of -1, and the others are asked about all the same.

    Args:
        model: any reward model.
        trajectories: the videos, of at least three frames each; one is in memory at a time, where they come so.
        instruction: instruction for all videos; None uses each one's canonical sentence.
        goals: for a model that takes pictures of goals only, see `goals_for`.
        threshold: value-order correlation of a success, see `detect_success`.
        temperature: tau of the weights, in [0, 100], see `advantage_weights`.
        device: torch device of the model.
        progress_bar: show a progress bar.
        log: keeps what the model said of each video at once; videos that it knows are not asked about again.
        frames: most frames of a video that are shown, evenly spread; GVL's figures show 30.
        ask: for a model that asks a chat model, also ask it whether the video shows a success, "plain" or after
            "reasoning" (GVL's SuccessVQA); an answer that cannot be read is none.

    Returns:
        One row per video: "task", "tier", "seed", "camera", "instruction", "novelty" of its first frame (see
        `KnowingModel`; None if the model cannot say), "step" and "value" ``[T]``, "voc" (Spearman, equal values share
        their ranks), "voc_by_position" (see `voc_by_position`), "detected" (success by the values), "success" (by the
        environment), "weight" ``[T - 1]``, <= 100, "refused" (the reason, or None), "asked" (success by the answer, or
        None). The values and weights of a refused video are empty.

    Raises:
        ValueError: for a threshold, temperature or number of frames out of range, or a model that cannot be asked.
        DatasetError: without an instruction, if a video carries no sentences.
        QueryError: if a video has fewer than three frames, or the model fails in another way than by refusing.
    """
    if not 0 <= temperature <= 100:
        raise ValueError(f"temperature must be in [0, 100], got {temperature}")
    if frames < 3:
        raise ValueError(f"expected at least 3 frames, got {frames}")
    if ask != "no" and not isinstance(model, PromptedModel):
        raise ValueError(f"expected a model that asks a chat model, such as gvl:MODEL, got {type(model).__name__}")
    scorers: dict[str, VideoScorer] = {}  # by sentence
    rows = []
    for trajectory in tqdm(trajectories, desc="scoring", unit="video", disable=not progress_bar):
        index = shown_frames(trajectory, frames)
        sentence = instruction or trajectory.canonical
        if sentence not in scorers:
            scorers[sentence] = VideoScorer(model, [sentence], device, goals=goals)
        scored = _ask(scorers[sentence], trajectory.frames[index], sentence, trajectory.name, log)
        row: dict[str, Any] = {
            **{key: getattr(trajectory, key) for key in ("task", "tier", "seed", "camera")},
            "instruction": sentence,
            "novelty": scored.novelty,
            "step": trajectory.step[index].tolist(),
            "value": scored.value,
            "success": bool(trajectory.success.any()),
            "refused": scored.refused,
            "asked": None,
        }
        if ask != "no" and isinstance(model, PromptedModel):
            shown = model.resize(trajectory.frames[index])
            with contextlib.suppress(AnswerError):
                row["asked"] = ask_success(model.chat, shown, sentence, reasoning=ask == "reasoning")
        if scored.refused is None:
            given, rest = scored.value, scored.value[1:]
            row |= {
                "voc": voc(rest)["spearman"],
                "voc_by_position": voc_by_position(rest),
                "detected": detect_success(rest, threshold=threshold),
                "weight": advantage_weights(given, temperature=temperature, max_weight=100.0).tolist(),
            }
        else:
            row |= {"voc": REFUSED, "voc_by_position": REFUSED, "detected": threshold <= REFUSED, "weight": []}
        rows.append(row)
    return rows


def shown_frames(trajectory: Trajectory, frames: int) -> NDArray[np.int64]:
    """Places of at most so many frames, evenly spread.

    Raises:
        QueryError: there are fewer than three.
    """
    count = len(trajectory.frames)
    if count < 3:
        raise QueryError(f"{trajectory.name}: expected a video of at least 3 frames, got {count}")
    return np.linspace(0, count - 1, min(frames, count)).round().astype(np.int64)


def _ask(scorer: VideoScorer, frames: NDArray[np.uint8], sentence: str, name: str, log: ScoreLog | None) -> Scored:
    """What the model says of a video, or has said before."""
    if log is None:
        return ask_video(scorer, frames, sentence, name, "")
    key = log.key(frames, sentence)
    if key not in log.known:
        log.add(ask_video(scorer, frames, sentence, name, key))
    return log.known[key]


def ask_video(scorer: VideoScorer, frames: NDArray[np.uint8], sentence: str, name: str, key: str) -> Scored:
    """What the model says of a video, uint8 ``[T, H, W, 3]``.

    Raises:
        QueryError: the model fails in another way than by refusing.
    """
    scorer.open(frames, name)
    try:
        values = scorer.together(sentence)
        values = scorer.values(sentence) if values is None else values
        scored = Scored(key=key, value=values.tolist(), refused=None, novelty=scorer.novelty())
    except QueryError as error:
        if not isinstance(error.__cause__, AnswerError):
            raise
        scored = Scored(key=key, value=[], refused=reason(error), novelty=scorer.novelty())
    scorer.close()
    return scored


def summarize(rows: Sequence[dict[str, Any]], threshold: float) -> str:
    """A Markdown table by tier, and accuracy, precision and recall of the detected successes."""
    lines = ["| tier | videos | VOC, mean | ties by position | detected | succeeded |", "|---|---|---|---|---|---|"]
    for tier in dict.fromkeys(row["tier"] for row in rows):
        own = [row for row in rows if row["tier"] == tier]
        shares = (np.mean([row[name] for row in own]) for name in ("voc", "voc_by_position", "detected", "success"))
        lines.append(f"| {tier} | {len(own)} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    succeeded = [row["success"] for row in rows]
    by_order = auc([row["voc"] for row in rows], succeeded)
    answered = [row for row in rows if row["refused"] is None]
    by_value = float("nan")
    if answered:
        by_value = auc([row["value"][-1] for row in answered], [row["success"] for row in answered])
    positive = np.mean(succeeded)
    kept = [row for row in rows if row["detected"]]
    true = sum(row["success"] for row in kept)
    commoner = f" ({max(positive, 1 - positive):.3f} by always saying the commoner answer)"
    lines += [
        "",
        f"success detection at VOC >= {threshold:g}: {_detection(rows, 'detected', commoner)}",
        f"successes against failures (AUC): {by_order:.3f} by VOC, {by_value:.3f} by the value of the last frame",
        f"kept: {len(kept)} videos, of which {true / len(kept) if kept else 0:.0%} succeed; {positive:.0%} of all do",
    ]
    if (told := sum(row.get("asked") is not None for row in rows)) > 0:
        lines.append(f"success by asking: {_detection(rows, 'asked')}, {len(rows) - told} answers could not be read")
    if refused := len(rows) - len(answered):
        lines.append(f"refused: {refused} videos, counted with a VOC of {REFUSED:g}")
    return "\n".join(lines)


def _detection(rows: Sequence[dict[str, Any]], name: str, commoner: str = "") -> str:
    """Accuracy, precision and recall of what a row's entry says of success."""
    said = [row for row in rows if row[name]]
    true, succeeded = sum(row["success"] for row in said), sum(row["success"] for row in rows)
    right = np.mean([bool(row[name]) == row["success"] for row in rows])
    return (
        f"accuracy {right:.3f}{commoner}, precision {_share(true, len(said))}, recall {_share(true, succeeded)}, "
        f"n = {len(rows)}"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def plot_scores(rows: Sequence[dict[str, Any]], path: str | Path, *, threshold: float, title: str = "") -> None:
    """Plot the values over time by tier, and a histogram of the value-order correlation."""
    from vlp_gym.figures import COLOURS, figure_file

    with figure_file(9.0, 3.6, path) as figure:
        over_time, ordered = figure.subplots(1, 2)
        for number, tier in enumerate(dict.fromkeys(row["tier"] for row in rows)):
            own = [row for row in rows if row["tier"] == tier]
            moments = np.linspace(0, 1, FRAMES)
            colour, told = COLOURS[number % len(COLOURS)], [row["value"] for row in own if row["refused"] is None]
            if told:
                curves = [np.interp(moments, np.linspace(0, 1, len(values)), values) for values in told]
                mean, spread = np.mean(curves, 0), np.std(curves, 0)
                over_time.plot(moments, mean, color=colour, label=tier)
                over_time.fill_between(moments, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
            ordered.hist([row["voc"] for row in own], np.linspace(-1, 1, 21), color=colour, alpha=0.5, label=tier)
        ordered.axvline(threshold, color="0.3", linestyle="--", linewidth=1)
        over_time.set(xlabel="time in the video", ylabel="value", title=title)
        ordered.set(xlabel="value-order correlation (VOC)", ylabel="videos", title="dashed: taken for a success")
        ordered.legend()
