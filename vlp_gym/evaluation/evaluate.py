"""Evaluation of a reward model on collected rollouts: preference labels, progress, language and controls.

Three steps: *plan* the videos, segments and sentences to score (seeded, from rewards alone); *score* trajectory by
trajectory, so that each frame is encoded once and its tokens are freed afterwards; *measure* the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from tqdm import tqdm

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation import metrics
from vlp_gym.evaluation.compare import Difference, by_pairwise_head, by_pixels, by_score, by_sum
from vlp_gym.evaluation.goals import expert_goals
from vlp_gym.evaluation.measure import Curves, finite, measure
from vlp_gym.evaluation.plan import Key, Pair, PairsBy, TaskPlan, plan_task, reward_sentences
from vlp_gym.evaluation.report import FIGURES
from vlp_gym.models.protocol import GoalModel, RewardModel, value_range


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
    pairs_by: PairsBy = "rewards",
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Evaluate a reward model; ITP and IVP compare videos by one score, ``Scores.preference``.

    Videos and segments are scored on T frames spread evenly over them (VLP, section 4.2), values over time on the
    causal window that ends at each frame, with the model's own history. ``docs/evaluation.md`` describes the other
    protocols: pairs, scripted labels, opposite tasks, controls.

    Args:
        model: the model; moved to ``device`` and set to eval mode if it is a module.
        trajectories: rollouts of ``tasks``, and of their opposites for the sibling figures. The first rollout of a task
            defines its sentences, held-out sentences, variants and opposite.
        tasks: names of the evaluated tasks, at least one.
        split_name: name of the split for the report.
        seed: seeds all random draws.
        device: a torch device.
        pairs_per_task: pairs drawn for scripted ITP, each IVP and ILP.
        segment_steps: length of a scripted-label segment, in environment steps.
        pairs_by: what pairs of segments are chosen by, see `plan_task`.
        progress_bar: show a progress bar.

    Returns:
        A dict for JSON: "per_task" {task: {figure: float or None}}, "mean", "spread" (sample standard deviation over
        tasks), "counts", and the settings. A figure is None if the data cannot give it.

    Raises:
        ValueError: if no task is given or a task has no trajectory.
        DatasetError: if a task's first trajectory carries no sentences, or see ``pairs_by``.
        QueryError: if the model answers NaN or inf, naming the trajectory.
    """
    if not tasks:
        raise ValueError("tasks: expected at least one, got none")
    rng = np.random.default_rng(seed)
    plans = [plan_task(task, tasks, trajectories, rng, pairs_per_task, segment_steps, pairs_by) for task in tasks]
    goals = expert_goals(trajectories)
    for plan in plans:
        if isinstance(model, GoalModel) and model.needs_goal and plan.sibling_sentence not in goals:
            plan.sibling_sentence = None  # no goal image for it
    groups = {plan.task: plan.groups() for plan in plans}

    def all_pairs() -> list[Pair]:
        return [
            pair for plan in plans for pair in chain(*groups[plan.task].values(), plan.ilp, *plan.ilp_by_kind.values())
        ]

    plan_of = {i: plan for plan in plans for i in plan.watched}
    sentences = {key[1] for pair in all_pairs() for key in pair}.union(*map(reward_sentences, plans))
    scorer = VideoScorer(model, sorted(sentences), device, goals=goals)
    pairwise = scorer.guard.pairwise
    if pairwise:  # two requests per pair: take only some of the tier pairs
        for own in groups.values():
            own.update(
                {n: [pairs[i] for i in rng.permutation(len(pairs))[:pairs_per_task]] for n, pairs in own.items()}
            )
    keys = {key for pair in all_pairs() for key in pair}
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
    orders: tuple[Difference, Difference] | None = None
    if pairwise:
        answers = by_pairwise_head(scorer, trajectories, all_pairs(), progress_bar=progress_bar)
        difference, orders = answers.both.__getitem__, (answers.first.__getitem__, answers.second.__getitem__)
    pixels = by_pixels(trajectories, keys)
    sums = by_sum(trajectories, {i: each.value for i, each in curves.items()}, segment_steps)
    share = value_range(scorer.model) == (0.0, 1.0)
    per_task = {
        plan.task: measure(plan, groups[plan.task], difference, pixels, sums, curves, seed, orders, share)
        for plan in plans
    }
    summary = {
        name: metrics.mean_and_spread([figures[name] for figures in per_task.values()])
        for name in chain(*FIGURES.values())
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
            "pairs_by": pairs_by,
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
    curves = Curves(value=scorer.values(plan.sentence), pixel=pixel, novelty=scorer.novelty())
    if trajectory.tier == "expert" and n >= 3:
        shuffled = np.concatenate([[0], 1 + rng.permutation(n - 1)])
        curves.frozen = scorer.values(plan.sentence, np.full(n, n // 2))
        curves.shuffled = scorer.values(plan.sentence, shuffled), shuffled
        curves.reversed = scorer.values(plan.sentence, np.arange(n)[::-1].copy())
        curves.rewards = scorer.final_rewards(reward_sentences(plan))
    return curves
