"""How well a frame-by-frame reward follows the true one on tasks that it was not trained on, camera by camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.data.trajectory import Rollout, Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import DatasetError
from vlp_gym.evaluation import metrics
from vlp_gym.evaluation.measure import CONSISTENCY_PAIRS
from vlp_gym.models.protocol import RewardModel

Floats = NDArray[np.float64]
Figures = dict[str, dict[str, dict[str, float]]]  # task -> camera or `MULTI` -> figure -> value
MULTI = "multi-view"
SHUFFLE_SEED = 0
LEAST_FRAMES = 3  # of an expert: two shuffled ones after the first are the least that have an order


def evaluate_views(
    model: RewardModel,
    rollouts: Sequence[Rollout],
    *,
    seed: int = 0,
    device: str = "cpu",
    progress_bar: bool = True,
) -> Figures:
    """Consistency with the true reward, correlation with time, and controls, by task and camera.

    As "Revisiting the learning objectives" (sections 3.2 and 4) has it. *Consistency*: the share of 10,000 pairs of
    time steps from medium and random rollouts that the model orders as the true reward does; *VOC* of expert rollouts,
    in three coefficients, because the paper does not name its own. Each view counts alone, and "multi-view" takes the
    mean of the views' values at a time step.

    Controls, on experts: ``frozen`` repeats the middle frame, ``reversed`` runs backwards, ``shuffled`` shows all
    frames after the first in another order (VOC in the order shown; Spearman, as all of them); ``voc_wrong`` and
    ``consistency_wrong`` ask under the sentences of the other tasks.

    Args:
        model: the model; moved to ``device`` and put in eval mode if it is a module.
        rollouts: of at least two tasks, experts and others of each, see `group_views`.
        seed: of the pairs.
        device: a torch device.
        progress_bar: whether to show one.

    Raises:
        DatasetError: if a task has no expert, neither a medium nor a random rollout, or no sentences.
        QueryError: if the model answers NaN or inf, naming the trajectory.
    """
    tasks = _tasks(rollouts)
    views = [next(iter(rollout.values())) for rollout in rollouts]
    sentences = {task: next(view.canonical for view in views if view.task == task) for task in tasks}
    scorer = VideoScorer(model, list(sentences.values()), device)

    def of_model(view: Trajectory) -> dict[str, Floats]:
        own = sentences[view.task]
        wrong = [sentence for task, sentence in sentences.items() if task != view.task]
        scorer.open(view.frames, f"task {view.task}, {view.tier}, seed {view.seed}, camera {view.camera}")
        curves = {"own": scorer.values(own)}
        curves |= {f"wrong {sentence}": scorer.values(sentence) for sentence in wrong}
        if view.tier == "expert":
            count = len(view.frames)
            shuffled = np.append(0, 1 + np.random.default_rng([SHUFFLE_SEED, view.seed]).permutation(count - 1))
            curves["frozen"] = scorer.values(own, np.full(count, count // 2))
            curves["reversed"] = scorer.values(own, np.arange(count)[::-1].copy())
            curves["shuffled"] = scorer.values(own, shuffled)[1:]
        return curves

    return _measure(rollouts, of_model, seed, progress_bar)


def evaluate_baselines(rollouts: Sequence[Rollout], *, seed: int = 0) -> dict[str, Figures]:
    """The figures of two rewards that know neither the sentence nor what is seen: what they get is no merit.

    ``pixels`` pays how much the picture differs from the first one (mean absolute difference), ``clock`` the number of
    the frame.

    Args:
        rollouts: see `evaluate_views`.
        seed: of the pairs.
    """

    def pixels(view: Trajectory) -> dict[str, Floats]:
        frames = view.frames.astype(np.float32)
        return {"own": np.abs(frames - frames[:1]).mean((1, 2, 3), dtype=np.float64)}

    def clock(view: Trajectory) -> dict[str, Floats]:
        return {"own": np.arange(len(view.frames), dtype=np.float64)}

    return {name: _measure(rollouts, of, seed, False) for name, of in (("pixels", pixels), ("clock", clock))}


def average(figures: Figures, name: str, *, task: str | None = None, row: str | None = None) -> float:
    """Mean of one figure over tasks and rows (cameras and multi-view), as the paper's tables end; or over some of them.

    Args:
        figures: what `evaluate_views` gave.
        name: of the figure.
        task: only this task.
        row: only this camera, or `MULTI`.
    """
    chosen = [rows for other, rows in figures.items() if task in (None, other)]
    return float(np.mean([values[name] for rows in chosen for key, values in rows.items() if row in (None, key)]))


def _tasks(rollouts: Sequence[Rollout]) -> list[str]:
    """The tasks, once it is clear that each has what the figures need."""
    tiers: dict[str, set[str]] = {}
    for rollout in rollouts:
        view = next(iter(rollout.values()))
        if view.tier != "expert" or len(view.frames) >= LEAST_FRAMES:
            tiers.setdefault(view.task, set()).add(view.tier)
    for task, found in tiers.items():
        if "expert" not in found or not found & {"medium", "random"}:
            raise DatasetError(f"{task}: expected experts, and medium or random rollouts, got {sorted(found)}")
    return sorted(tiers)


def _measure(
    rollouts: Sequence[Rollout], curves_of: Callable[[Trajectory], dict[str, Floats]], seed: int, progress_bar: bool
) -> Figures:
    kept: dict[str, dict[str, list[tuple[Trajectory, Mapping[str, Floats]]]]] = {t: {} for t in _tasks(rollouts)}
    for rollout in tqdm(rollouts, desc="evaluating", unit="rollout", leave=False, disable=not progress_bar):
        by_view = {camera: curves_of(view) for camera, view in rollout.items()}
        first = next(iter(by_view.values()))
        by_view[MULTI] = {name: np.mean([curves[name] for curves in by_view.values()], axis=0) for name in first}
        view = next(iter(rollout.values()))  # rewards are those of every camera
        for row, curves in by_view.items():
            kept[view.task].setdefault(row, []).append((view, curves))
    return {task: {row: _figures(seen, seed) for row, seen in rows.items()} for task, rows in kept.items()}


def _figures(seen: Sequence[tuple[Trajectory, Mapping[str, Floats]]], seed: int) -> dict[str, float]:
    """The figures of one task and row."""
    experts = [curves for view, curves in seen if view.tier == "expert" and len(view.frames) >= LEAST_FRAMES]
    failing = [(view, curves) for view, curves in seen if view.tier in ("medium", "random")]
    wrong = [name for name in experts[0] if name.startswith("wrong ")]
    reward = np.concatenate([view.reward[1:] for view, _ in failing])  # nothing is paid for the reset's frame

    def consistency(name: str) -> float:
        value = np.concatenate([curves[name][1:] for _, curves in failing])
        return metrics.reward_consistency(value, reward, pairs=CONSISTENCY_PAIRS, seed=seed)

    def voc(name: str) -> dict[str, float]:
        each = [metrics.voc(curves[name]) for curves in experts]
        return {coefficient: float(np.mean([one[coefficient] for one in each])) for coefficient in each[0]}

    figures = {"consistency": consistency("own")}
    figures |= {f"voc_{coefficient}": value for coefficient, value in voc("own").items()}
    if wrong:
        figures["consistency_wrong"] = float(np.mean([consistency(name) for name in wrong]))
        figures["voc_wrong"] = float(np.mean([voc(name)["spearman"] for name in wrong]))
    return figures | {name: voc(name)["spearman"] for name in ("frozen", "shuffled", "reversed") if name in experts[0]}
