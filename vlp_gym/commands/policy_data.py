"""What `vlp-gym policy` learns from: the rollouts, rewards and labels that its options name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp_gym.commands.data import load
from vlp_gym.commands.label import open_labeler
from vlp_gym.commands.policy_options import (
    FilteredOptions,
    LabelledOptions,
    RewardedOptions,
    RunOptions,
    method_classes,
)
from vlp_gym.errors import DatasetError

if TYPE_CHECKING:
    from vlp_gym.data.trajectory import Trajectory
    from vlp_gym.policies.labels import Labelled
    from vlp_gym.policies.learner import Learner, LearnerOptions


def source_of(run: RunOptions, options: LearnerOptions) -> str:
    """Who labelled or rewarded, and what of the data was used."""
    if isinstance(run, LabelledOptions):
        source = "all" if getattr(options, "on", "") == "all" else run.labels
    else:
        assert isinstance(run, RewardedOptions)
        source = run.reward
    if set(run.tiers) != set(RunOptions.tiers):
        source = ", ".join([source, *sorted(set(run.tiers))])
    if isinstance(run, FilteredOptions) and run.filter is not None:
        source += f", VOC {run.threshold:g} by {run.filter}"
    return source


def load_rollouts(run: RunOptions, task: str) -> list[Trajectory]:
    """The trajectories of the task, of the tiers and over the threshold that the options name."""
    from vlp_gym.data.trajectory import ALL_TIERS
    from vlp_gym.policies.data import check_recorded

    if unknown := [tier for tier in run.tiers if tier not in ALL_TIERS]:
        raise ValueError(f"--tiers: expected some of {', '.join(ALL_TIERS)}, got {unknown[0]!r}")
    every = load(*run.data, tasks=[task])
    trajectories = [trajectory for trajectory in every if trajectory.tier in run.tiers]
    if not trajectories:
        there = sorted({trajectory.tier for trajectory in every})
        raise DatasetError(
            f"--tiers: no trajectory of {task} is of {', '.join(run.tiers)}; there are {', '.join(there)}"
        )
    check_recorded(trajectories)
    return _filtered(run, trajectories) if isinstance(run, FilteredOptions) and run.filter is not None else trajectories


def _filtered(run: FilteredOptions, trajectories: list[Trajectory]) -> list[Trajectory]:
    """The trajectories over the threshold."""
    from vlp_gym.models.registry import best_device
    from vlp_gym.policies.rewards import frame_values, order_correlation

    assert run.filter is not None
    sentence = run.instruction or trajectories[0].canonical
    values = frame_values(trajectories, run.filter, sentence, device=best_device())
    correlations = [order_correlation(each) for each in values]
    kept = [t for t, found in zip(trajectories, correlations, strict=True) if found >= run.threshold]
    if not kept:
        raise DatasetError(
            f"--threshold: no trajectory has a VOC of {run.threshold:g} or more, the largest is {max(correlations):.3f}"
        )
    print(f"{len(kept)} of {len(trajectories)} trajectories have a VOC of {run.threshold:g} or more")
    return kept


def make_learner(
    method: str, run: RunOptions, options: LearnerOptions, trajectories: list[Trajectory], out: Path
) -> tuple[Learner[Any], Labelled | None]:
    """The learner with its data, and the labels if it takes some."""
    from vlp_gym.models.registry import best_device
    from vlp_gym.policies.bc import BCOptions, preferred_steps
    from vlp_gym.policies.data import pairs_of, transitions_of

    action = trajectories[0].action
    assert action is not None
    data: dict[str, Any] = {}
    labelled = None
    if isinstance(run, RewardedOptions):
        data["transitions"] = _rewarded(method, run, options, trajectories)
    elif isinstance(options, BCOptions) and options.on == "all":
        data["transitions"] = transitions_of(trajectories)
    else:
        assert isinstance(run, LabelledOptions)
        labelled = _labels(run, trajectories, out / "labels")
        print(labelled.report)
        pairs = pairs_of(labelled.buffer, action.shape[1])
        data = {"transitions": preferred_steps(pairs)} if isinstance(options, BCOptions) else {"pairs": pairs}
        if getattr(options, "learn_on", "pairs") == "data":
            data["transitions"] = transitions_of(trajectories)
    seeds = range(run.first_seed, run.first_seed + run.seeds)
    return method_classes(method)[0](options, seeds, **data, device=best_device()), labelled


def _rewarded(method: str, run: RewardedOptions, options: Any, trajectories: list[Trajectory]) -> Any:
    import numpy as np

    from vlp_gym.models.registry import best_device
    from vlp_gym.policies.awr import step_weights
    from vlp_gym.policies.data import transitions_of
    from vlp_gym.policies.rewards import frame_values, scripted_values, step_values

    if run.reward == "scripted":
        if method == "iql":
            return transitions_of(trajectories)
        values = scripted_values(trajectories)
        places = [np.arange(len(each)) for each in values]  # one a step
    else:
        sentence = run.instruction or trajectories[0].canonical
        values = frame_values(trajectories, run.reward, sentence, device=best_device())
        if method == "iql":
            return transitions_of(trajectories, rewards=[each[1:] for each in step_values(trajectories, values)])
        places = [trajectory.step for trajectory in trajectories]
    weights = [
        step_weights(
            each, shown, len(trajectory.episode_reward),
            temperature=options.temperature, most_weight=options.most_weight,
        )
        for each, shown, trajectory in zip(values, places, trajectories, strict=True)
    ]  # fmt: skip
    return transitions_of(trajectories, weights=weights)


def _labels(run: LabelledOptions, trajectories: list[Trajectory], folder: Path) -> Labelled:
    """The labels of the run: those that are saved there, or else new ones, saved before any training."""
    import numpy as np

    from vlp_gym.policies.labels import CoinLabeler, GoingOn, TierLabeler, find_pairs, label_pairs, load_labels
    from vlp_gym.preferences.buffer import PreferenceBuffer
    from vlp_gym.preferences.cascade import gate_of

    known = None
    if (folder / "preferences.json").exists():
        labelled = load_labels(folder, source=run.labels, pairs=run.pairs, length=run.length)
        if labelled.report.unfinished is None:
            return labelled
        known = np.array(labelled.report.unfinished, np.float64)  # None becomes NaN
    interrupted = False
    if (Path(run.labels) / "preferences.json").exists():
        labelled = find_pairs(trajectories, PreferenceBuffer.load(run.labels), run.labels)
    else:
        ask = functools.partial(
            label_pairs, trajectories, source=run.labels, pairs=run.pairs, length=run.length, seed=run.label_seed
        )
        if run.labels == "mtvlp":
            labelled = ask(TierLabeler(trajectories))
        elif run.labels == "random":
            labelled = ask(CoinLabeler(run.label_seed))
        else:
            sentence = run.instruction or trajectories[0].canonical
            with open_labeler(run.labels, sentence, kind=run.kind, seed=run.label_seed) as labeler:
                asked = GoingOn(labeler, known)
                labelled = ask(asked)
                if interrupted := asked.interrupted:
                    labelled = labelled.unfinished(asked.known)
                if (gate := gate_of(labeler)) is not None:
                    print(gate)
    labelled.save(folder)
    if interrupted:
        raise KeyboardInterrupt  # a person's labels are kept first
    return labelled
