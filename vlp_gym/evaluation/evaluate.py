"""Run a reward model over collected rollouts and fill the table of figures: labels, progress, language, controls.

Three steps: *plan* which videos and segments must be scored under which sentence (seeded, from the rewards alone),
*score* trajectory by trajectory so that each frame is encoded once and its tokens are dropped again, *measure*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation import metrics
from vlp_gym.evaluation.compare import by_pairwise_head, by_pixels, by_score
from vlp_gym.evaluation.goals import expert_goals
from vlp_gym.evaluation.measure import Curves, finite, measure
from vlp_gym.evaluation.plan import Key, Pair, TaskPlan, plan_task, reward_sentences
from vlp_gym.evaluation.report import FIGURES
from vlp_gym.models.protocol import GoalModel, RewardModel


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
        trajectories: rollouts of ``tasks``, and of their opposites if the sibling figures are wanted. The first rollout
            of a task says its sentences, held-out sentences, variants and opposite; figures that need what it does not
            have are None.
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
        DatasetError: if a task's first trajectory carries no sentences.
        QueryError: if the model answers NaN or inf, naming the trajectory.
    """
    if not tasks:
        raise ValueError("tasks: expected at least one, got none")
    rng = np.random.default_rng(seed)
    plans = [plan_task(task, tasks, trajectories, rng, pairs_per_task, segment_steps) for task in tasks]
    goals = expert_goals(trajectories)
    for plan in plans:
        if isinstance(model, GoalModel) and model.needs_goal and plan.sibling_sentence not in goals:
            plan.sibling_sentence = None  # no picture shows it
    groups = [plan.groups(trajectories) for plan in plans]
    plan_of = {i: plan for plan in plans for tier in plan.videos.values() for i in tier}
    sentences = {key[1] for plan, own in zip(plans, groups, strict=True) for key in _keys(plan, own)}
    sentences = sentences.union(*map(reward_sentences, plans))
    scorer = VideoScorer(model, sorted(sentences), device, goals=goals)
    pairwise = scorer.guard.pairwise
    if pairwise:  # two requests a pair: not all pairs of videos of two tiers
        groups = [{name: _some(pairs, pairs_per_task, rng) for name, pairs in own.items()} for own in groups]
    keys = {key for plan, own in zip(plans, groups, strict=True) for key in _keys(plan, own)}
    asked: dict[int, list[Key]] = {i: [] for i in plan_of}
    for key in sorted(keys):
        asked.setdefault(key[0], []).append(key)
    scores: dict[Key, float] = {}
    curves: dict[int, Curves] = {}
    for i in tqdm(sorted(asked), desc=f"evaluating on {split_name}", unit="video", disable=not progress_bar):
        trajectory = trajectories[i]
        scorer.open(trajectory.frames, trajectory.name)
        if not pairwise:
            spans, phrasings = [(start, stop) for _, _, start, stop in asked[i]], [key[1] for key in asked[i]]
            scores.update(zip(asked[i], scorer.preferences(spans, phrasings).tolist(), strict=True))
        if i in plan_of:
            curves[i] = _curves(scorer, trajectory, plan_of[i], np.random.default_rng([seed, i]))
    difference = by_score(scores)
    if pairwise:
        pairs = [pair for plan, own in zip(plans, groups, strict=True) for pair in _pairs(plan, own)]
        difference = by_pairwise_head(scorer, trajectories, pairs, progress_bar=progress_bar)
    pixels = by_pixels(trajectories, keys)
    per_task = {
        plan.task: measure(plan, trajectories, own, difference, pixels, curves, seed)
        for plan, own in zip(plans, groups, strict=True)
    }
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
            "compared_by": "pairwise head, both orders" if pairwise else "preference",
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
        "mean": {name: finite(mean) for name, (mean, _, _) in summary.items()},
        "spread": {name: finite(spread) for name, (_, spread, _) in summary.items()},
        "per_task": per_task,
    }


def _curves(scorer: VideoScorer, trajectory: Trajectory, plan: TaskPlan, rng: np.random.Generator) -> Curves:
    n = len(trajectory.frames)
    frames = trajectory.frames.astype(np.float32)
    pixel = np.abs(frames - frames[:1]).mean(axis=(1, 2, 3), dtype=np.float64)
    curves = Curves(value=scorer.values(plan.sentence), pixel=pixel)
    if trajectory.tier == "expert" and n >= 3:
        shuffled = np.concatenate([[0], 1 + rng.permutation(n - 1)])
        curves.frozen = scorer.values(plan.sentence, np.full(n, n // 2))
        curves.shuffled = scorer.values(plan.sentence, shuffled), shuffled
        curves.reversed = scorer.values(plan.sentence, np.arange(n)[::-1].copy())
        curves.rewards = scorer.final_rewards(reward_sentences(plan))
    return curves


def _pairs(plan: TaskPlan, groups: Mapping[str, Sequence[Pair]]) -> Iterator[Pair]:
    """Every pair that the figures of a task need; some come more than once."""
    for pairs in (*groups.values(), plan.ilp):
        yield from pairs


def _keys(plan: TaskPlan, groups: Mapping[str, Sequence[Pair]]) -> Iterator[Key]:
    for pair in _pairs(plan, groups):
        yield from pair


def _some(pairs: Sequence[Pair], count: int, rng: np.random.Generator) -> list[Pair]:
    chosen = rng.permutation(len(pairs))[:count]
    return [pairs[i] for i in chosen]
