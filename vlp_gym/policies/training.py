"""The training loop of all offline learners: fused optimizer steps for all seeds, resumable bit for bit on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlp_gym.errors import CheckpointError
from vlp_gym.policies.learner import Learner
from vlp_gym.policies.policy import Policy
from vlp_gym.schema import Count, Document
from vlp_gym.training.state import load_training_state, save_training_state

LOG_EVERY = 100
Row = dict[str, Any]
"""A step, and for each name the values of all seeds."""


class _Run(Document):
    settings: dict[str, Any]
    losses: list[dict[str, Count | list[float]]]
    evaluations: list[dict[str, Count | list[float]]]


def train(
    learner: Learner[Any],
    folder: str | Path,
    *,
    save_every: int = 5_000,
    evaluate: Callable[[Policy], Mapping[str, list[float]]] | None = None,
    evaluate_every: int = 5_000,
    progress_bar: bool = True,
) -> tuple[list[Row], list[Row]]:
    """Train all seeds; after an interruption the same call goes on from the last saved state.

    Args:
        learner: newly made.
        folder: output folder for the saved state, and at the end for the policy, see `vlp_gym.policies.load`.
        save_every: updates between saved states.
        evaluate: called with the policy of that moment; returns values by name, one of each seed.
        evaluate_every: updates between evaluations; the last update is always followed by one.
        progress_bar: show a progress bar with loss and time left.

    Returns:
        The losses, a row for every `LOG_EVERY` updates, and the evaluations, a row each.

    Raises:
        ValueError: the folder holds a run with other settings or data, or a number of updates is below 1.
        CheckpointError: what the folder holds is damaged.
        FloatingPointError: a loss is not finite.
    """
    if min(save_every, evaluate_every) < 1:
        raise ValueError(f"save_every and evaluate_every must be at least 1, got {save_every} and {evaluate_every}")
    folder, steps, settings = Path(folder), learner.options.steps, learner.settings
    optimizer = fused_adam(learner)
    generators = {f"seed {seed}": g for seed, g in zip(learner.seeds, learner.generators, strict=True)}
    done, losses, evaluations = 0, [], []
    if (folder / "training.json").exists():
        done, extra = load_training_state(
            folder, model=learner, optimizer=optimizer, generators=generators,
            check=lambda step, extra: _check_run(step, extra, settings, folder),
        )  # fmt: skip
        losses, evaluations = extra["losses"], extra["evaluations"]

    def save() -> None:
        extra = {"settings": settings, "losses": losses, "evaluations": evaluations}
        save_training_state(
            folder, model=learner, optimizer=optimizer, step=done, generators=generators, extra=extra
        )  # fmt: skip

    groups = dict(zip(learner.parts(), optimizer.param_groups, strict=True))
    bar = tqdm(
        total=steps, initial=done, desc=learner.name, unit="step", disable=not progress_bar, smoothing=0.05
    )  # fmt: skip
    with bar:
        while done < steps:
            parts = _update(learner, optimizer, groups, done)
            if done % LOG_EVERY == 0 or done == steps - 1:
                row = {name: values.tolist() for name, values in parts.items()}
                _check_finite(row, done, folder)
                losses.append({"step": done, **row})
                bar.set_postfix({name: f"{sum(values) / len(values):.3f}" for name, values in row.items()})
            done += 1
            bar.update()
            if evaluate is not None and (done % evaluate_every == 0 or done == steps):
                found = evaluate(Policy.of(learner, done))
                evaluations.append({"step": done, **{name: list(values) for name, values in found.items()}})
            if done % save_every == 0 or done == steps:
                save()
    Policy.of(learner, done).save(folder)
    return losses, evaluations


def fused_adam(learner: Learner[Any]) -> torch.optim.Adam:
    """Adam with a group of parameters for each network, fused where this torch can."""
    groups = [{"params": parameters} for parameters in learner.parts().values()]
    try:
        return torch.optim.Adam(groups, lr=learner.options.learning_rate, fused=True)
    except RuntimeError:  # on a CPU before torch 2.4
        return torch.optim.Adam(groups, lr=learner.options.learning_rate)


def _update(
    learner: Learner[Any], optimizer: torch.optim.Adam, groups: Mapping[str, dict[str, Any]], step: int
) -> dict[str, torch.Tensor]:
    """One update; returns its losses by name, ``[E]`` each."""
    if learner.renews_optimizer(step):
        optimizer.state.clear()
    rates = learner.rates(step)
    for name, group in groups.items():
        group["lr"] = learner.options.learning_rate * rates.get(name, 1.0)
    seen: dict[str, torch.Tensor] = {}
    for losses in learner.update(step):
        optimizer.zero_grad()  # to None: networks without a loss in this part are left alone
        sum(losses.values()).sum().backward()  # type: ignore[union-attr]  # seeds share no weight
        optimizer.step()
        seen |= {name: values.detach() for name, values in losses.items()}
    return seen


def _check_finite(row: Mapping[str, list[float]], step: int, folder: Path) -> None:
    for name, values in row.items():
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(
                f"update {step}: the loss {name} of the seeds is {values}; lower --learning-rate. "
                f"{folder} holds the last saved state"
            )


def _check_run(step: int, extra: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    then = {"precision": "fp32", **_Run.parse(extra, folder / "training.json").settings}  # older runs do not say it
    names = settings.keys() | then.keys()
    changed = {k: (then.get(k), settings.get(k)) for k in sorted(names) if then.get(k) != settings.get(k)}
    if "data" in changed and len(changed) == 1:
        raise ValueError(f"{folder} holds a run on other data or labels; choose another --out")
    if changed:
        raise ValueError(f"{folder} holds a run with other settings (then, now): {changed}; choose another --out")
    if step > settings["steps"]:
        raise CheckpointError(f"{folder / 'training.json'}: step: expected at most {settings['steps']}, got {step}")
