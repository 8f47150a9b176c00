"""Run a reward model over collected rollouts and fill the table of figures: labels, progress, language, controls.

Three steps: *plan* which videos and segments must be scored under which sentence (seeded, from the rewards alone),
*score* trajectory by trajectory so that each frame is encoded once and its tokens are dropped again, *measure*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation import metrics
from vlp_gym.evaluation.plan import Key, Pair, TaskPlan, plan_task, questions, reward_sentences, video_pair, whole
from vlp_gym.evaluation.report import FIGURES
from vlp_gym.models.protocol import RewardModel

Floats = NDArray[np.float64]
CROSS_TIERS = (("expert", "medium"), ("expert", "random"), ("medium", "random"))
CONSISTENCY_PAIRS = 10_000  # time-step pairs a task, as in "Learning objectives under one roof"


@dataclass
class _Curves:
    """What is kept of one trajectory of an evaluated task once its tokens are gone; ``[F]`` arrays."""

    value: Floats
    pixel: Floats
    frozen: Floats | None = None
    shuffled: tuple[Floats, NDArray[np.int64]] | None = None  # values as shown, true index of each shown frame
    reversed: Floats | None = None
    rewards: dict[str, float] | None = None  # sentence -> the wrapper's reward at the last frame


def evaluate(
    model: RewardModel,
    trajectories: Sequence[Trajectory],
    *,
    tasks: Sequence[str],
    split_name: str,
    seed: int = 0,
    device: str = "cpu",
    pairs_per_task: int = 500,
    segment_steps: int = 50,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Judge a reward model on collected rollouts; one score f (``Scores.preference``) serves ITP and IVP alike.

    Videos and segments are scored on T frames spread evenly over them (VLP, section 4.2), values in time on the causal
    window that ends at each frame, under the model's own history. ``docs/evaluation.md`` has the other protocols:
    pairs, scripted labels, opposite tasks, controls.

    Args:
        model: the model to judge; moved to ``device`` and put in eval mode if it is a module.
        trajectories: rollouts of ``tasks``, and of their siblings if the sibling figures are wanted.
        tasks: names of the evaluated tasks, at least one.
        split_name: goes into the report.
        seed: seed of every draw.
        device: a torch device.
        pairs_per_task: pairs drawn for scripted ITP, each IVP and ILP.
        segment_steps: length of a scripted-label segment, in env steps.
        progress_bar: whether to show one.

    Returns:
        A dict for JSON: "per_task" {task: {figure: float or None}}, "mean", "spread" (sample standard deviation
        over tasks), "counts", and the settings. A figure that the data cannot give is None.

    Raises:
        ValueError: if no task is given or a task has no trajectory.
        QueryError: if the model answers NaN or inf, naming the trajectory.
    """
    if not tasks:
        raise ValueError("tasks: expected at least one, got none")
    rng = np.random.default_rng(seed)
    plans = [plan_task(task, tasks, trajectories, rng, pairs_per_task, segment_steps) for task in tasks]
    asked: dict[int, set[Key]] = defaultdict(set)
    for plan in plans:
        for key in questions(plan, trajectories):
            asked[key[0]].add(key)
    plan_of = {i: plan for plan in plans for tier in plan.videos.values() for i in tier}

    sentences = {key[1] for keys in asked.values() for key in keys}.union(*map(reward_sentences, plans))
    scorer = VideoScorer(model, sorted(sentences), device)
    scores: dict[Key, float] = {}
    pixels: dict[tuple[int, int, int], float] = {}
    curves: dict[int, _Curves] = {}
    for i in _progress(sorted(asked), progress_bar, f"evaluating on {split_name}"):
        trajectory = trajectories[i]
        scorer.open(trajectory.frames, f"task {trajectory.task}, {trajectory.tier}, seed {trajectory.seed}")
        keys = sorted(asked[i])
        answers = scorer.preferences([(start, stop) for _, _, start, stop in keys], [key[1] for key in keys])
        scores.update(zip(keys, answers.tolist(), strict=True))
        for _, _, start, stop in keys:
            first, last = trajectory.frames[[start, stop - 1]].astype(np.float64)
            pixels[i, start, stop] = float(np.abs(last - first).mean())
        if i in plan_of:
            curves[i] = _curves(scorer, trajectory, plan_of[i], np.random.default_rng([seed, i]))

    per_task = {plan.task: _measure(plan, trajectories, scores, pixels, curves, seed) for plan in plans}
    summary = {
        name: metrics.mean_and_spread([figures[name] for figures in per_task.values()])
        for group in FIGURES.values()
        for name in group
    }
    return {
        "split": split_name,
        "seed": seed,
        "tasks": list(tasks),
        "settings": {
            "model": type(model).__name__,
            "window": model.window,
            "history": model.history,
            "pairs_per_task": pairs_per_task,
            "segment_steps": segment_steps,
        },
        "counts": {
            plan.task: {
                **{tier: len(plan.videos[tier]) for tier in TIERS},
                "scripted_pairs": len(plan.scripted),
                "sibling_experts": len(plan.sibling_experts),
            }
            for plan in plans
        },
        "mean": {name: _finite(mean) for name, (mean, _, _) in summary.items()},
        "spread": {name: _finite(spread) for name, (_, spread, _) in summary.items()},
        "per_task": per_task,
    }


# ---------------------------------------------------------------- score


def _curves(scorer: VideoScorer, trajectory: Trajectory, plan: TaskPlan, rng: np.random.Generator) -> _Curves:
    n = len(trajectory.frames)
    frames = trajectory.frames.astype(np.float32)
    pixel = np.abs(frames - frames[:1]).mean(axis=(1, 2, 3), dtype=np.float64)
    curves = _Curves(value=scorer.values(plan.sentence), pixel=pixel)
    if trajectory.tier == "expert" and n >= 3:
        shuffled = np.concatenate([[0], 1 + rng.permutation(n - 1)])
        curves.frozen = scorer.values(plan.sentence, np.full(n, n // 2))
        curves.shuffled = scorer.values(plan.sentence, shuffled), shuffled
        curves.reversed = scorer.values(plan.sentence, np.arange(n)[::-1].copy())
        curves.rewards = scorer.final_rewards(reward_sentences(plan))
    return curves


# ---------------------------------------------------------------- measure


def _measure(
    plan: TaskPlan,
    trajectories: Sequence[Trajectory],
    scores: Mapping[Key, float],
    pixels: Mapping[tuple[int, int, int], float],
    curves: Mapping[int, _Curves],
    seed: int,
) -> dict[str, float | None]:
    def accuracy(pairs: Sequence[Pair]) -> float | None:
        if not pairs:
            return None
        return metrics.preference_accuracy([scores[a] for a, _ in pairs], [scores[b] for _, b in pairs])

    def pixel(key: Key) -> float:
        return pixels[key[0], key[2], key[3]]

    def tier_accuracy(sentences: Sequence[str], of: Any = scores.__getitem__) -> float | None:
        better: list[float] = []
        worse: list[float] = []
        for sentence in sentences:
            by_tier = {t: [of(whole(i, sentence, trajectories)) for i in v] for t, v in plan.videos.items()}
            for high, low in CROSS_TIERS:
                better += np.repeat(by_tier[high], len(by_tier[low])).tolist()
                worse += np.tile(by_tier[low], len(by_tier[high])).tolist()
        return metrics.preference_accuracy(better, worse) if better else None

    tier_of = [t.tier for t in trajectories]
    experts = plan.videos["expert"]
    misses = [video_pair(a, b, plan.sentence, trajectories) for a in experts for b in plan.near_misses]
    siblings = [video_pair(a, b, plan.sentence, trajectories) for a in experts for b in plan.sibling_experts]
    same_tier = [(a, b) for a, b in plan.ivp if tier_of[a[0]] == tier_of[b[0]]]
    extreme = [(a, b) for a, b in plan.ivp if (tier_of[a[0]], tier_of[b[0]]) == ("random", "expert")]
    figures: dict[str, float | None] = {
        "itp_scripted": accuracy(plan.scripted),
        "itp_scripted_pixel": _accuracy_of(pixel, plan.scripted),
        "itp_tier": tier_accuracy([plan.sentence]),
        "itp_tier_held_out": tier_accuracy(plan.held_out),
        "itp_near_miss": accuracy(misses),
        "itp_tier_pixel": tier_accuracy([plan.sentence], pixel),
        "ivp": accuracy(plan.ivp),
        "ivp_held_out": accuracy(plan.ivp_held_out),
        "ivp_same_tier": accuracy(same_tier),
        "ivp_random_over_expert": accuracy(extreme),
        "ivp_sibling": accuracy(siblings),
        "ilp_loss": metrics.ilp_loss([scores[a] for a, _ in plan.ilp], [scores[b] for _, b in plan.ilp])
        if plan.ilp
        else None,
    }
    for kind in ("phrase", "description", "right_colour", "wrong_colour"):
        figures[f"itp_{kind}"] = tier_accuracy(plan.variants.get(kind, ()))
    figures.update(_measure_progress(plan, trajectories, curves, seed))
    figures.update(_measure_controls(plan, trajectories, curves))
    return {name: _finite(value) for name, value in figures.items()}


def _measure_progress(
    plan: TaskPlan, trajectories: Sequence[Trajectory], curves: Mapping[int, _Curves], seed: int
) -> dict[str, float | None]:
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
    if failing:  # the paper draws its pairs from random and sub-optimal rollouts; frame 0 has no reward yet
        value = np.concatenate([curves[i].value[1:] for i in failing])
        reward = np.concatenate([trajectories[i].reward[1:] for i in failing])
        figures["reward_consistency"] = metrics.reward_consistency(value, reward, pairs=CONSISTENCY_PAIRS, seed=seed)
    if own:
        values, rewards = [curves[i].value[1:] for i in own], [trajectories[i].reward[1:] for i in own]
        figures["fixed_time"] = metrics.fixed_time_correlation(_stack(values, False), _stack(rewards, False))
        figures["fixed_time_held"] = metrics.fixed_time_correlation(_stack(values, True), _stack(rewards, True))
        succeeded = [bool(np.any(trajectories[i].success)) for i in own]
        figures["success_auc"] = metrics.auc([curves[i].value[-1] for i in own], succeeded)
    return figures


def _measure_controls(
    plan: TaskPlan, trajectories: Sequence[Trajectory], curves: Mapping[int, _Curves]
) -> dict[str, float | None]:
    experts = [curves[i] for i in plan.videos["expert"]]
    frozen = [metrics.voc(c.frozen)["spearman"] for c in experts if c.frozen is not None]
    drift = [abs(float(c.frozen[-1] - c.frozen[0])) for c in experts if c.frozen is not None]
    rise = [float(c.value[-1] - c.value[0]) for c in experts if c.frozen is not None]
    backwards = [metrics.voc(c.reversed)["spearman"] for c in experts if c.reversed is not None]
    shown, true = [], []
    for c in experts:
        if c.shuffled is not None:
            values, order = c.shuffled
            shown.append(metrics.voc(values[1:])["spearman"])
            true.append(metrics.voc(values[np.argsort(order)][1:])["spearman"])

    right: list[float] = []
    wrong: list[float] = []
    sibling: list[float] = []
    for rewards in (c.rewards for c in experts if c.rewards is not None):
        right.append(rewards[plan.sentence])
        wrong += [rewards[s] for s in plan.wrong]
        sibling += [rewards[plan.sibling_sentence]] if plan.sibling_sentence else []

    changes = []
    for tier in TIERS:
        for i in plan.videos[tier]:
            first = np.flatnonzero(trajectories[i].success)[:1]
            if len(first) and first[0] + 1 < len(curves[i].value):
                value = curves[i].value
                changes.append(float(value[first[0] + 1 :].mean() - value[first[0]]))
    return {
        "control_frozen": _mean(frozen),
        "control_frozen_drift": _ratio(drift, rise),
        "control_shuffled_shown": _mean(shown),
        "control_shuffled_true": _mean(true),
        "control_reversed": _mean(backwards),
        "control_wrong_instruction": _ratio(wrong, right),
        "control_wrong_sibling": _ratio(sibling, right),
        "control_after_success": _mean(changes),
    }


def _accuracy_of(score: Any, pairs: Sequence[Pair]) -> float | None:
    return metrics.preference_accuracy([score(a) for a, _ in pairs], [score(b) for _, b in pairs]) if pairs else None


def _stack(curves: Sequence[Floats], hold: bool) -> Floats:
    """Pad curves to ``[N, T]`` with NaN, or with their last value where ``hold``."""
    longest = max(len(c) for c in curves)
    padding = (lambda c: c[-1]) if hold else (lambda c: np.nan)
    return np.stack([np.append(c, np.full(longest - len(c), padding(c))) for c in curves])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    return float(np.mean(above) / np.mean(below)) if above and below and np.mean(below) > 0 else None


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _progress(items: Sequence[int], show: bool, title: str) -> Iterator[int]:
    from tqdm.auto import tqdm

    return iter(tqdm(items, desc=title, unit="video", disable=not show))
