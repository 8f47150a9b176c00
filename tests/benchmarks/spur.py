"""Does SPUR's training work on real clips? A tiny random Qwen2.5-VL, trained by the paper's recipe, no download.

vlp-gym collect metaworld --out runs/data
python tests/benchmarks/spur.py --data runs/data --steps 1500 --out runs/spur

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

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_qwen import tiny_qwen2_5

from vlp_gym.data.dataset import Trajectory, load_trajectories
from vlp_gym.models.spur import SPURModel
from vlp_gym.storage import write_atomic
from vlp_gym.training.loop import TrainConfig, train
from vlp_gym.training.spur import STRATEGIES, SPURRecipe

EVALUATION_BATCHES = 16


@dataclass(frozen=True)
class Options:
    """Train and compare with before."""

    data: Path
    """A folder of `vlp-gym collect`."""
    out: Path = Path("runs/spur")
    """Gets the random base, the checkpoint, training.png with the curve, and spur.json."""
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
    """Of adapters; None trains the whole language model, which is random, as adapters alone would not mend."""
    learning_rate: float = 1e-3
    """Much above the paper's 2e-5, which starts from a language model that can read."""
    seed: int = 0
    """Of weights and pairs."""


def main(options: Options) -> None:
    """Train, print the figures, and write them."""
    rollouts = load_trajectories(options.data)
    seen, unseen = split(rollouts)
    base = tiny_qwen2_5(options.out / "base", options.seed, options.width, options.layers)
    torch.manual_seed(options.seed)
    model = SPURModel(
        base, window=options.frames, frame_size=options.frame_size, lora_rank=options.lora_rank, dropout=0.0
    )
    common: dict[str, Any] = {"batch_size": options.batch_size, "frames": options.frames}
    held_out = SPURRecipe(unseen, **common, seed=options.seed + 1)
    before = evaluate(model, held_out)
    config = TrainConfig(
        steps=options.steps, relevance_steps=0, learning_rate=options.learning_rate, weight_decay=0.0, warmup=0.1,
        seed=options.seed, save_every=max(1, options.steps),
    )  # fmt: skip
    started = time.perf_counter()
    history = train(model, SPURRecipe(seen, **common, seed=options.seed), options.out, config)
    few = max(1, len(history) // 20)
    result = {
        "rollouts": {"trained on": len(seen), "held out": len(unseen)},
        "loss": {part: [round(mean(history[:few], part), 4), round(mean(history[-few:], part), 4)] for part in PARTS},
        "held out, before": before,
        "held out, after": evaluate(model, held_out),
        "seconds": round(time.perf_counter() - started),
    }
    write_atomic(options.out / "spur.json", json.dumps(result, indent=2).encode())
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
def evaluate(model: SPURModel, recipe: SPURRecipe) -> dict[str, float]:
    """Preference accuracy (each strategy's, too), how far the two orders are from adding up to 1, progress error."""
    model.eval()
    right, gaps, errors, strategies = [], [], [], []
    for number in range(EVALUATION_BATCHES):
        batch = recipe.batch(number)
        tokens = model.encode_frames(batch.frames.flatten(0, 2)).unflatten(0, batch.mask.shape)
        text, (mask_a, mask_b) = model.encode_text(batch.instructions), batch.mask.unbind(1)
        progress, logit = model.pair_logits(tokens[:, 0], tokens[:, 1], text, mask_a, mask_b)
        _, turned = model.pair_logits(tokens[:, 1], tokens[:, 0], text, mask_b, mask_a)
        first = logit.sigmoid()
        right.append((first > 0.5) == (batch.label > 0.5))
        gaps.append((first + turned.sigmoid() - 1).abs())
        errors.append((progress.sigmoid() - batch.progress[:, 0]).square().flatten())
        strategies.append(batch.strategy)
    correct, strategy = torch.cat(right).float(), torch.cat(strategies)
    by_strategy = {
        f"accuracy, {name}": round(correct[strategy == index].mean().item(), 3)
        for index, name in enumerate(STRATEGIES)
        if (strategy == index).any()
    }
    return {
        "pairs": len(correct),
        "accuracy": round(correct.mean().item(), 3),
        **by_strategy,
        "mean |P(a,b) + P(b,a) - 1|": round(torch.cat(gaps).mean().item(), 4),
        "progress error (MSE)": round(torch.cat(errors).nanmean().item(), 4),
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
