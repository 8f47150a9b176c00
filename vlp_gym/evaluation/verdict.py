"""Is a model fit to pay rewards? An answer in plain words, from the figures of an evaluation.

The bounds are ours: rules of thumb from agents that found what a model pays for without success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlp_gym.models.protocol import NOVEL


@dataclass(frozen=True)
class Bound:
    """One demand.

    Attributes:
        figure: name in the result's "mean".
        least: least value that is good enough; None: no such bound.
        most: largest value that is good enough.
        fault: what it means if it is not met.
        cure: what would help.
        common: every model can be asked for it, so that its absence is worth a word.
    """

    figure: str
    least: float | None
    most: float | None
    fault: str
    cure: str
    common: bool = True


PACE = "clips of uneven pace and videos in which nothing happens"
BOUNDS = (
    Bound("voc_expert_spearman", 0.8, None, "its value does not rise with an expert's progress", "train longer"),
    Bound("control_frozen", -0.5, 0.5, "it counts frames: a frozen video is paid, too", PACE),
    Bound("control_frozen_drift", None, 0.2, "standing still is paid, too", PACE),
    Bound("control_reversed", None, 0.0, "a video played backwards is paid, too", "reversed clips"),
    Bound("control_wrong_instruction", None, 0.5, "a wrong sentence is paid, too", "more tasks, other words for each"),
    Bound("success_auc", 0.8, None, "failures end as high as successes", "failures in the data, near misses above all"),
    Bound("itp_near_miss", 0.8, None, "a near miss is taken for a success", "near misses in the data"),
    Bound("near_over_done", None, 0.6, "a hand beside the object is paid like the finished task", "progress in stages"),
    Bound(
        "novelty",
        None,
        NOVEL,
        "it knows no such pictures, so that its rewards may mean nothing",
        "training on some",
        common=False,
    ),
)
UNSEEN = "videos of tasks or scenes that were not trained on, to know what it does there"


def verdict(result: Mapping[str, Any]) -> str:
    """One paragraph: fit or not, each reason with its figure, what would help, and what the data could not tell.

    Args:
        result: result of `vlp_gym.evaluation.evaluate.evaluate`.
    """
    mean = result["mean"]
    missed = [bound for bound in BOUNDS if _misses(mean[bound.figure], bound)]
    unknown = [bound.figure for bound in BOUNDS if bound.common and mean[bound.figure] is None]
    if missed:
        reasons = "; ".join(
            f"{bound.fault} ({bound.figure} {mean[bound.figure]:.2f}, {_wanted(bound)})" for bound in missed
        )
        cures = ", ".join(dict.fromkeys(bound.cure for bound in missed))
        said = f"**Not fit to pay rewards**: {reasons}. What would help: {cures}."
    elif len(unknown) > 2:
        said = "**Nobody can say whether it is fit to pay rewards**: the data are too few kinds of videos."
    else:
        said = f"**Nothing here speaks against paying rewards with it.** What would tell more: {UNSEEN}."
    return said + (f" Not known from these data: {', '.join(unknown)}." if unknown else "")


def _misses(value: float | None, bound: Bound) -> bool:
    return value is not None and not (
        (bound.least is None or value >= bound.least) and (bound.most is None or value <= bound.most)
    )


def _wanted(bound: Bound) -> str:
    if bound.least is not None and bound.most is not None:
        return f"{bound.least:g} to {bound.most:g} is good enough"
    return (
        f"{bound.least:g} or more is good enough"
        if bound.least is not None
        else f"{bound.most:g} or less is good enough"
    )
