"""The figures of one task, from the model's scores: labels, progress, language and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import TIERS, VARIANT_KINDS, Trajectory
from vlp_gym.evaluation import metrics
from vlp_gym.evaluation.compare import Difference
from vlp_gym.evaluation.plan import Pair, TaskPlan

Floats = NDArray[np.float64]
STILL, ON_ITS_WAY = 0.01, 0.6  # metres; share of the object's way to its place at success
CONSISTENCY_PAIRS = 10_000  # pairs of time steps per task, as in "Learning objectives under one roof"


@dataclass
class Curves:
    """Results for one trajectory of an evaluated task; arrays ``[F]``."""

    value: Floats
    pixel: Floats
    novelty: float | None = None  # of the first frame, see `KnowingModel`; None where the model does not know
    frozen: Floats | None = None
    shuffled: tuple[Floats, NDArray[np.int64]] | None = None  # values as shown, true index of each shown frame
    reversed: Floats | None = None
    rewards: dict[str, float] | None = None  # sentence -> the wrapper's reward at the last frame


def measure(
    plan: TaskPlan,
    groups: Mapping[str, Sequence[Pair]],
    difference: Difference,
    pixels: Difference,
    sums: Difference,
    curves: Mapping[int, Curves],
    seed: int,
    orders: tuple[Difference, Difference] | None = None,
    share: bool = True,
) -> dict[str, float | None]:
    """All figures of one task; None where the data cannot give one.

    Args:
        plan: the task's plan.
        groups: figure -> its pairs, see `TaskPlan.groups`.
        difference: comparison of two videos by the model.
        pixels: comparison of two videos by pixel difference, the baseline.
        sums: comparison of two segments by the sum of the values over their steps.
        curves: trajectory -> its values over time.
        seed: seeds the draw of time steps.
        orders: for a pairwise head, the comparison that shows the pair's first video first, and the one that shows it
            second.
        share: the model's progress, if it has such a head, is a share of the task, in [0, 1].
    """
    figures = {name: _accuracy(pairs, difference) for name, pairs in groups.items()}
    for name in ("itp_scripted", "itp_tier"):
        figures[f"{name}_pixel"] = _accuracy(groups[name], pixels)
    for name in ("itp_scripted", "itp_segments_tier"):
        figures[f"{name}_sum"] = _accuracy(groups[name], sums)
    for number, order in enumerate(("first", "second")):
        figures[f"itp_scripted_better_{order}"] = _accuracy(groups["itp_scripted"], orders[number]) if orders else None
    figures["label_correlation"] = _label_correlation(plan, difference)
    for name in ("itp_scripted", "ivp"):
        figures[f"{name}_loss"] = _loss(groups[name], difference)
    figures["ilp_loss"] = _indifference(plan.ilp, difference)
    figures["average_loss"] = _mean_of_all([figures[name] for name in ("itp_scripted_loss", "ivp_loss", "ilp_loss")])
    for kind in VARIANT_KINDS:
        itp, ivp = (groups.get(f"{name}_{kind}", ()) for name in ("itp_scripted", "ivp"))
        losses = (
            _loss(itp, difference),
            _loss(ivp, difference),
            _indifference(plan.ilp_by_kind.get(kind, ()), difference),
        )
        figures |= {f"ilp_loss_{kind}": losses[2], f"average_loss_{kind}": _mean_of_all(losses)}
        for name in ("itp", "itp_scripted", "ivp"):
            figures.setdefault(f"{name}_{kind}", None)
    figures.update(_measure_progress(plan, curves, seed))
    figures.update(_measure_share(plan, curves, share))
    figures.update(_measure_near(plan, curves))
    figures.update(_measure_controls(plan, curves))
    far = [curves[i].novelty for i in plan.watched]
    figures["novelty"] = _mean([each for each in far if each is not None])
    return {name: finite(value) for name, value in figures.items()}


def _accuracy(pairs: Sequence[Pair], difference: Difference) -> float | None:
    """Share of pairs whose better video is preferred; a tie counts one half."""
    differences = [difference(pair) for pair in pairs]
    return metrics.preference_accuracy(differences, np.zeros(len(pairs))) if pairs else None


def _loss(pairs: Sequence[Pair], difference: Difference) -> float | None:
    """Cross-entropy of the preference for the better video."""
    differences = [difference(pair) for pair in pairs]
    return metrics.preference_loss(differences, np.zeros(len(pairs))) if pairs else None


def _indifference(pairs: Sequence[Pair], difference: Difference) -> float | None:
    """Cross-entropy of the preference for the label 0.5."""
    differences = [difference(pair) for pair in pairs]
    return metrics.ilp_loss(differences, np.zeros(len(pairs))) if pairs else None


def _label_correlation(plan: TaskPlan, difference: Difference) -> float | None:
    """Of the model's labels with scripted ones, where 1 says that the segment of k-means' first set is better."""
    if not plan.scripted:
        return None
    true = np.asarray(plan.first_set_better, np.float64)
    right = np.array([np.heaviside(difference(pair), 0.5) for pair in plan.scripted])
    return metrics.label_correlation(np.where(true == 1, right, 1 - right), true)


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing, as it would be another mean."""
    there = [value for value in values if value is not None]
    return _mean(there) if len(there) == len(values) else None


def _measure_progress(plan: TaskPlan, curves: Mapping[int, Curves], seed: int) -> dict[str, float | None]:
    trajectories = plan.trajectories
    figures: dict[str, float | None] = {}
    for tier in ("expert", "random"):
        long_enough = [curves[i] for i in plan.videos[tier] if len(curves[i].value) >= 2]
        all_voc = [metrics.voc(c.value) for c in long_enough]
        for name in ("spearman", "pearson", "kendall"):
            figures[f"voc_{tier}_{name}"] = _mean([v[name] for v in all_voc])
        figures[f"voc_{tier}_pixel"] = _mean([metrics.voc(c.pixel)["spearman"] for c in long_enough])
    expert, random = figures["voc_expert_spearman"], figures["voc_random_spearman"]
    figures["voc_gap"] = None if expert is None or random is None else expert - random

    own = [i for tier in TIERS for i in plan.videos[tier] if len(curves[i].value) >= 2]
    failing = [i for i in own if trajectories[i].tier != "expert"]
    figures["reward_consistency"] = figures["fixed_time"] = figures["fixed_time_held"] = figures["success_auc"] = None
    figures["reward_correlation_spearman"] = figures["reward_correlation_pearson"] = None
    if failing:  # the paper draws its pairs from random and sub-optimal rollouts; frame 0 has no reward yet
        value = np.concatenate([curves[i].value[1:] for i in failing])
        reward = np.concatenate([trajectories[i].reward[1:] for i in failing])
        figures["reward_consistency"] = metrics.reward_consistency(value, reward, pairs=CONSISTENCY_PAIRS, seed=seed)
    if own:
        values, rewards = [curves[i].value[1:] for i in own], [trajectories[i].reward[1:] for i in own]
        figures["fixed_time"] = metrics.fixed_time_correlation(_stack(values, False), _stack(rewards, False))
        figures["fixed_time_held"] = metrics.fixed_time_correlation(_stack(values, True), _stack(rewards, True))
        watched = [i for i in plan.watched if len(curves[i].value) >= 2]
        succeeded = [bool(np.any(trajectories[i].success)) for i in watched]
        figures["success_auc"] = metrics.auc([curves[i].value[-1] for i in watched], succeeded)
        together = metrics.reward_correlation(np.concatenate(values), np.concatenate(rewards))
        figures |= {f"reward_correlation_{name}": value for name, value in together.items()}
    return figures


def _measure_share(plan: TaskPlan, curves: Mapping[int, Curves], share: bool) -> dict[str, float | None]:
    """Of experts until success: their progress against the share of the time that has passed (SPUR, section 4)."""
    errors, orders = [], []
    for i in plan.videos["expert"]:
        end = plan.trajectories[i].first_success
        if end is None or end < 1:
            continue
        value = curves[i].value[: end + 1]
        orders.append(metrics.voc(value)["spearman"])
        if share and curves[i].rewards is not None:  # it has a head for progress
            errors.append(float(np.mean((value - np.arange(end + 1) / end) ** 2)))
    return {"progress_error": _mean(errors), "progress_order": _mean(orders)}


def _measure_near(plan: TaskPlan, curves: Mapping[int, Curves]) -> dict[str, float | None]:
    """Is a hand beside the object worth less than the object on its way, and than the finished task?"""
    order, near, done = [], [], []
    for i in plan.videos["expert"]:
        shown = plan.trajectories[i]
        if (found := near_and_moved(shown)) is not None:
            value = curves[i].value
            order.append(float(value[found[0]] < value[found[1]]))
            near.append(float(value[found[0]]))
            done.append(float(value[shown.first_success :].mean()))
    return {"near_below_moved": _mean(order), "near_over_done": _ratio(near, done)}


def near_and_moved(trajectory: Trajectory) -> tuple[int, int] | None:
    """Two frames of a successful rollout: the last before the object moves, and the first at 60 % of its way.

    None without success, where positions are unknown, or where the object never moves.
    """
    success = trajectory.first_success
    if success is None or np.isnan(trajectory.positions).any():
        return None
    moved = np.linalg.norm(trajectory.positions[:, 1] - trajectory.positions[0, 1], axis=-1)
    still = np.flatnonzero(moved[:success] < min(STILL, moved[success] / 2))
    if moved[success] < STILL or not len(still):
        return None
    return int(still[-1]), int(np.flatnonzero(moved >= ON_ITS_WAY * moved[success])[0])


def _measure_controls(plan: TaskPlan, curves: Mapping[int, Curves]) -> dict[str, float | None]:
    experts = [curves[i] for i in plan.videos["expert"]]
    frozen = [(c.frozen, c.value) for c in experts if c.frozen is not None]
    drift = [abs(float(still[-1] - still[0])) for still, _ in frozen]
    rise = [float(value[-1] - value[0]) for _, value in frozen]
    backwards = [metrics.voc(c.reversed)["spearman"] for c in experts if c.reversed is not None]
    shown, true = [], []
    for c in experts:
        if c.shuffled is not None:
            values, order = c.shuffled
            shown.append(metrics.voc(values[1:])["spearman"])
            true.append(metrics.voc(values[np.argsort(order)][1:])["spearman"])

    rewards = [c.rewards for c in experts if c.rewards is not None]
    right = [each[plan.sentence] for each in rewards]
    wrong = [each[sentence] for each in rewards for sentence in plan.wrong]
    sibling = [each[plan.sibling_sentence] for each in rewards if plan.sibling_sentence]

    changes = []
    for i in (i for tier in TIERS for i in plan.videos[tier]):
        first, value = plan.trajectories[i].first_success, curves[i].value
        if first is not None and first + 1 < len(value):
            changes.append(float(value[first + 1 :].mean() - value[first]))
    return {
        "control_frozen": _mean([metrics.voc(still)["spearman"] for still, _ in frozen]),
        "control_frozen_drift": _ratio(drift, rise),
        "control_shuffled_shown": _mean(shown),
        "control_shuffled_true": _mean(true),
        "control_reversed": _mean(backwards),
        "control_wrong_instruction": _ratio(wrong, right),
        "control_wrong_sibling": _ratio(sibling, right),
        "control_after_success": _mean(changes),
    }


def _stack(curves: Sequence[Floats], hold: bool) -> Floats:
    """Pad curves to ``[N, T]`` with NaN, or with their last value if ``hold``."""
    longest = max(len(c) for c in curves)
    padding = (lambda c: c[-1]) if hold else (lambda c: np.nan)
    return np.stack([np.append(c, np.full(longest - len(c), padding(c))) for c in curves])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    return float(np.mean(above) / np.mean(below)) if above and below and np.mean(below) > 0 else None


def finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
