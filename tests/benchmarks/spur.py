"""Does SPUR's training work on real clips? A tiny random Qwen2.5-VL, trained by the paper's recipe, no download.

vlp-gym collect metaworld --out runs/data
python tests/benchmarks/spur.py --data runs/data

The figures say that loss, sampling and gradients are right, not how good SPUR is: the network is ten thousand times
smaller than the paper's, and its vision tower random.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_qwen import tiny_qwen2_5

from vlp_gym.data.shards import load_trajectories
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.figures import COLOURS, figure_file
from vlp_gym.metaworld.sentences import with_sentences
from vlp_gym.models.spur import SPURModel
from vlp_gym.storage import write_atomic
from vlp_gym.training.loop import train
from vlp_gym.training.recipes.spur import STRATEGIES, SPUROptions, SPURRecipe

EVALUATION_BATCHES = 16


@dataclass(frozen=True)
class Options:
    """Train and compare with before."""

    data: Path
    """A folder of `vlp-gym collect`."""
    out: Path | None = None
    """Gets the random base, the checkpoint, training.png with the curve, spur.json and spur.png; runs/spur-SEED by
    default."""
    steps: int = 1500
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs a step; the paper's."""
    frames: int = 8
    """Frames a video."""
    frame_size: int = 112
    """Pixels; (frame_size / 28)^2 tokens a frame."""
    width: int = 64
    """Of the language model, a multiple of 32."""
    layers: int = 3
    """Of the language model."""
    lora_rank: int | None = None
    """Of adapters; None trains the whole language model: adapters alone would not mend a random one."""
    learning_rate: float = 1e-3
    """Much above the paper's 2e-5, which starts from a language model that can read."""
    seed: int = 0
    """Of weights and pairs."""


def main(options: Options) -> None:
    """Train, print the figures, and write them."""
    rollouts = [with_sentences(rollout) for rollout in load_trajectories(options.data)]
    seen, unseen = split(rollouts)
    out = options.out or Path("runs") / f"spur-{options.seed}"
    # A checkpoint in the folder rests on its base: another seed or size must not overwrite it.
    folder = out / f"base-{options.seed}-{options.width}-{options.layers}"
    base = tiny_qwen2_5(folder, options.seed, options.width, options.layers)
    torch.manual_seed(options.seed)
    model = SPURModel(
        base, window=options.frames, frame_size=options.frame_size, lora_rank=options.lora_rank, dropout=0.0
    )
    common: dict[str, Any] = {"batch_size": options.batch_size, "frames": options.frames}
    held_out = SPURRecipe(unseen, **common, seed=options.seed + 1)
    before, untrained = evaluate(model, held_out)
    config = SPUROptions(
        data=(options.data,), steps=options.steps, learning_rate=options.learning_rate, seed=options.seed,
        save_every=max(1, options.steps),
    ).config()  # fmt: skip
    started = time.perf_counter()
    history = train(model, SPURRecipe(seen, **common, seed=options.seed), out, config)
    after, trained = evaluate(model, held_out)
    few = max(1, len(history) // 20)
    result = {
        "rollouts": {"trained on": len(seen), "held out": len(unseen)},
        "loss": {part: [round(mean(history[:few], part), 4), round(mean(history[-few:], part), 4)] for part in PARTS},
        "held out, before": before,
        "held out, after": after,
        "seconds": round(time.perf_counter() - started),
    }
    write_atomic(out / "spur.json", json.dumps(result, indent=2).encode())
    draw(history, untrained, trained, out / "spur.png")
    print(json.dumps(result, indent=2))


PARTS = ("loss", "preference", "progress")


def mean(rows: list[dict[str, float]], part: str) -> float:
    """Of one part of the loss over some steps."""
    return float(np.mean([row[part] for row in rows]))


def split(rollouts: list[Trajectory]) -> tuple[list[Trajectory], list[Trajectory]]:
    """Every third rollout of a task and tier is held out."""
    count: dict[tuple[str, str], int] = {}
    seen, unseen = [], []
    for rollout in rollouts:
        number = count[rollout.task, rollout.tier] = count.get((rollout.task, rollout.tier), -1) + 1
        (unseen if number % 3 == 2 else seen).append(rollout)
    return seen, unseen


@torch.inference_mode()
def evaluate(model: SPURModel, recipe: SPURRecipe) -> tuple[dict[str, float], Tensor]:
    """Preference accuracy (each strategy's, too), whether the two orders of a pair agree, and how right progress is.

    Returns:
        The figures, and P(a > b) and P(b > a) of each pair, ``[2, pairs]``.
    """
    model.eval()
    probabilities, labels, strategies, errors, orders = [], [], [], [], []
    for number in range(EVALUATION_BATCHES):
        batch = recipe.batch(number)
        tokens = model.encode_frames(batch.frames.flatten(0, 2)).unflatten(0, batch.mask.shape)
        text, (mask_a, mask_b) = model.encode_text(batch.instructions), batch.mask.unbind(1)
        logits, logit = model.pair_logits(tokens[:, 0], tokens[:, 1], text, mask_a, mask_b)
        _, turned = model.pair_logits(tokens[:, 1], tokens[:, 0], text, mask_b, mask_a)
        probabilities.append(torch.stack([logit, turned]).sigmoid())
        labels.append(batch.label)
        strategies.append(batch.strategy)
        for progress, target in zip(logits.sigmoid(), batch.progress[:, 0], strict=True):
            known = ~target.isnan()
            errors.append((progress - target)[known].square())
            if len(target[known].unique()) > 1:  # not under another task's sentence
                orders.append(spearmanr(progress[known], target[known]).statistic)
    both, strategy = torch.cat(probabilities, 1), torch.cat(strategies)
    first, turned = both
    correct = ((first > 0.5) == (torch.cat(labels) > 0.5)).float()
    excess = first + turned - 1
    by_strategy = {
        f"accuracy, {name}": round(correct[strategy == index].mean().item(), 3)
        for index, name in enumerate(STRATEGIES)
        if (strategy == index).any()
    }
    figures = {
        "pairs": len(correct),
        "accuracy": round(correct.mean().item(), 3),
        **by_strategy,
        "both orders prefer the same video": round(((first > 0.5) != (turned > 0.5)).float().mean().item(), 3),
        "P(a,b) + P(b,a) - 1": round(excess.mean().item(), 4),
        "its standard error": round((excess.std() / len(excess) ** 0.5).item(), 4),
        "its mean absolute value": round(excess.abs().mean().item(), 4),
        "progress error (MSE)": round(torch.cat(errors).mean().item(), 4),
        "progress, rank correlation with the target": round(float(np.mean(orders)), 3),
    }
    return figures, both


def draw(history: list[dict[str, float]], before: Tensor, after: Tensor, path: Path) -> None:
    """The loss and its parts, and each held-out pair asked in both orders, before and after training."""
    width = max(1, len(history) // 50)
    with figure_file(9.6, 3.2, path) as figure:
        curve, *squares = figure.subplots(1, 3)
        for part, colour in zip(PARTS, COLOURS, strict=False):
            values = np.convolve([row[part] for row in history], np.ones(width) / width, "valid")
            curve.plot(np.arange(len(values)) + width, values, color=colour, label=part)
        curve.set(title=f"loss, mean of {width} steps", xlabel="step", ylim=(0, None))
        curve.legend()
        for axes, title, both in zip(squares, ("untrained", "trained"), (before, after), strict=True):
            axes.plot([0, 1], [1, 0], color="0.7", linewidth=1)
            axes.scatter(*both, s=10, alpha=0.5, color=COLOURS[0])
            axes.set(title=title, xlabel="P(a > b), asked as (a, b)", ylabel="P(b > a), asked as (b, a)")
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")


if __name__ == "__main__":
    main(tyro.cli(Options))
