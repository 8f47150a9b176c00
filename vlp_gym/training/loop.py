"""The training loop: resumable, on one process or several GPUs through accelerate, with a plot of the losses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlp_gym.errors import CheckpointError, import_extra
from vlp_gym.models.checkpoint import load_state, save_checkpoint, stored_config, stored_state
from vlp_gym.schema import Document
from vlp_gym.storage import write_atomic
from vlp_gym.training.early_stopping import HELD_OUT, held_out_loss, lowest, next_step, stage_of
from vlp_gym.training.log import open_log
from vlp_gym.training.recipe import Loss, Recipe, Stage, TrainConfig
from vlp_gym.training.state import load_training_state, save_training_state


def train(
    model: nn.Module,
    recipe: Recipe,
    folder: str | Path,
    config: TrainConfig,
    *,
    held_out: Recipe | None = None,
    progress_bar: bool = True,
) -> list[dict[str, float]]:
    """Train a model; after an interruption the same call resumes from the last saved state.

    Args:
        model: newly built; moved to the accelerator's device.
        recipe: batches, losses and stages.
        folder: output folder for ``config.json``, ``model.safetensors``, the saved state, ``history.json`` and
            ``training.png``.
        config: settings of the optimizer and of saving.
        held_out: the same recipe with the held-out episodes, needed for ``config.patience``.
        progress_bar: show a progress bar.

    Returns:
        One dictionary per step: its number, losses and duration, and "held_out" where that loss was measured.

    Raises:
        ValueError: if the folder holds a run with other settings, tasks or model config, or the patience needs
            `held_out`.
        FloatingPointError: if the loss is not finite.
        MissingExtraError: without accelerate.
    """
    accelerate = import_extra("accelerate", "training needs", "train")
    if config.patience and held_out is None:
        raise ValueError("--patience: expected with --hold-out, whose episodes it looks at")
    folder = Path(folder)
    # A stage may train a few weights only: DistributedDataParallel would wait for the others' gradients for ever.
    resting = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = accelerate.Accelerator(
        mixed_precision=config.precision, kwargs_handlers=[resting], log_with=config.log, project_dir=str(folder)
    )
    generator = torch.Generator().manual_seed(config.seed + accelerator.process_index)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = recipe.optimizer(model, config)
    model.to(accelerator.device)
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}  # the weights of the stage's lowest held-out loss
    stages = recipe.stages(model, config.steps)
    ends = list(accumulate(stage.steps for stage in stages))
    settings = {**asdict(config), **recipe.settings, **_model_settings(model)}
    if (folder / "training.json").exists():
        _, extra = load_training_state(
            folder, model=model, optimizer=optimizer, generators={"augment": generator}, best=best,
            check=lambda step, extra: _check_run(step, extra, settings, ends, folder),
        )  # fmt: skip
        history = extra["history"]
    wrapped = _DistributedLoss(model)
    wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
    judged: Sequence[Stage] = ()
    step, total = next_step(history, ends, config.patience), ends[-1]
    shown = progress_bar and accelerator.is_main_process
    if step < total:
        recipe.prepare(model, progress_bar=shown)
    if step < total and held_out is not None and config.patience:
        held_out.prepare(model, progress_bar=shown)
        judged = held_out.stages(model, config.steps)
    bar = tqdm(total=total, initial=step, desc="training", unit="step", disable=not shown)

    def save() -> None:
        if accelerator.is_main_process:
            save_training_state(
                folder, model=model, optimizer=getattr(optimizer, "optimizer", optimizer), step=len(history),
                generators={"augment": generator}, extra={"history": history, "config": settings}, best=best,
            )  # fmt: skip
            _write_history(folder, history)

    current: Stage | None = None
    with bar, open_log(accelerator, config.log, folder, settings) as log:
        while step < total:
            first, end = stage_of(step, ends)
            place = ends.index(end)
            stage = stages[place]
            if stage is not current:
                _enter(stage, model, trained)
                current = stage
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step - first, stage.steps, config.warmup)
            draw = stage.batch or recipe.batch
            batch = draw(step * accelerator.num_processes + accelerator.process_index).to(accelerator.device)
            with accelerator.autocast():
                parts = wrapped(stage.loss, batch, generator)
            if not torch.isfinite(parts["loss"]):
                raise FloatingPointError(
                    f"training step {step}: the loss is {parts['loss'].item()}; lower --learning-rate. "
                    f"{folder} holds the last saved state"
                )
            accelerator.backward(parts["loss"])
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            row = {name: float(value.detach()) for name, value in parts.items()}
            history.append({"step": step, **row, "seconds": time.perf_counter() - started})
            bar.set_postfix(loss=f"{np.mean([r['loss'] for r in history[-20:]]):.3f}")
            due, follows = (step + 1) % config.save_every == 0, step + 1
            if judged and held_out is not None and (due or follows == end):
                history[-1][HELD_OUT] = held_out_loss(model, held_out, judged[place], accelerator)
                low = lowest(history, first)
                if not low.later:
                    best = {name: weight.detach().cpu().clone() for name, weight in stored_state(model).items()}
                follows = next_step(history, ends, config.patience)
                if follows == end:
                    load_state(model, best, str(folder))
                    best = {}
                    if shown:
                        bar.write(
                            f"step {step + 1}: the held-out loss was lowest after step {low.step + 1}, "
                            f"{low.loss:.4g}: its weights are kept; {end - step - 1} of {stage.steps} steps were left"
                        )
            log({**history[-1], "learning_rate": optimizer.param_groups[0]["lr"]})
            bar.update(follows - step)
            step = follows
            if due and step < total:
                save()
    save()
    for parameter in trained:
        parameter.requires_grad_(True)
    model.eval()
    if accelerator.is_main_process:
        save_checkpoint(model, folder, dtype="float16" if config.half else None)
    return history


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: a linear warm-up, then a cosine from 1 to 0.01.

    Args:
        step: step within the stage, from 0.
        steps: number of steps of the stage.
        warmup: share of the steps in which the factor rises, in [0, 1].
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _enter(stage: Stage, model: nn.Module, trained: list[nn.Parameter]) -> None:
    """Set which parameters of `trained` require gradients in this stage, and which submodules train."""
    learning = {id(parameter) for parameter in (trained if stage.trained is None else stage.trained)}
    for parameter in trained:
        parameter.requires_grad_(id(parameter) in learning)
    model.train()
    for module in stage.resting:
        module.eval()


class _DistributedLoss(nn.Module):
    """The loss as a `forward`, so that gradients are averaged over processes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Loss, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return loss(self.model, batch, generator)


def _model_settings(model: nn.Module) -> dict[str, Any]:
    """The model's config; a saved state omits frozen weights, so only the config identifies them."""
    try:
        return {"model": stored_config(model)}
    except (AttributeError, CheckpointError):  # such as a VLPModel around a backbone instance
        return {}


class _Run(Document):
    history: list[dict[str, float]]
    config: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it


def _check_run(step: int, extra: dict[str, Any], settings: dict[str, Any], ends: Sequence[int], folder: Path) -> None:
    where = folder / "training.json"
    run = _Run.parse(extra, where)
    _check_same_settings(run.config, settings, folder)
    expected = 0
    for number, row in enumerate(run.history):
        found = row.get("step", -1)
        early = settings["patience"] and found > expected and found in ends  # the stage before was stopped
        if not (found == expected or early) or not {"loss", "seconds"} <= row.keys():
            raise CheckpointError(f"{where}: extra.history.{number}: expected step {expected}, loss and seconds")
        expected = int(found) + 1
    if step != len(run.history):
        raise CheckpointError(f"{where}: step: expected {len(run.history)}, the length of the history, got {step}")


def _check_same_settings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    before = {  # defaults for older states: empty lists, one seed for everything
        **{key: [] for key, value in now.items() if isinstance(value, list)},
        **asdict(TrainConfig()),
        "recipe_seed": before.get("seed"),
        **before,
    }
    free = ("save_every", "half", "log", "model")
    changed = {key: (before.get(key), now[key]) for key in now if key not in free and before.get(key) != now[key]}
    own, model = before.get("model", {}), now.get("model", {})
    changed |= {f"model.{key}": (own[key], model[key]) for key in model if key in own and own[key] != model[key]}
    if changed:
        raise ValueError(f"{folder} holds a run with other settings (then, now): {changed}; choose another --out")


def _write_history(folder: Path, history: list[dict[str, float]]) -> None:
    write_atomic(folder / "history.json", json.dumps(history).encode())
    from vlp_gym.viz import plot_training

    plot_training(history, folder / "training.png", title="vlp_gym training")
