"""What a step costs with each family of reward models: its window encoded again, against its newest frame alone.

python tests/benchmarks/families.py --out runs/bench

The architectures are the published ones; their weights are random, which changes no time. Models that are asked over
an endpoint cost a request a step in either case (RL-VLM-F two).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from measure import machine, spread, window_costs

from vlp_gym import load_reward_model
from vlp_gym.storage import write_atomic


@dataclass(frozen=True)
class Options:
    """Measure one environment's step."""

    families: tuple[str, ...] = ("staged", "vlp", "clip", "liv", "vip", "r3m", "roboclip", "rewind", "embedding")
    """Which of them."""
    blocks: int = 3
    """Blocks of A B B A."""
    threads: int = 1
    """Torch threads."""
    out: Path = Path("runs/bench")
    """Where families.json goes."""


def main(options: Options) -> None:
    """Measure each and print a table."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": machine(), "n": 2 * options.blocks}
    print(f"{'family':12} {'T':>3} {'tokens a frame':>15} {'naive ms':>24} {'cached ms':>24} {'ratio':>20}")
    for family in options.families:
        model, text = FAMILIES[family]()
        model.eval()
        shape = tuple(model.encode_frames(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape[1:])
        naive, cached = window_costs(model, text, 1, model.window, 1, options.blocks)
        row = {"window": model.window, "tokens": list(shape)}
        row |= {"naive_ms": spread(naive * 1e3), "cached_ms": spread(cached * 1e3), "ratio": spread(naive / cached)}
        result[family] = row
        tokens = f"{shape[0]} x {shape[1]}"
        print(
            f"{family:12} {model.window:3} {tokens:>15} {row['naive_ms']:>24} {row['cached_ms']:>24} {row['ratio']:>20}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "families.json", json.dumps(result, indent=2).encode())


def _staged() -> Any:
    model: Any = load_reward_model("vlp-compact")
    return model, _told(model)


def _vlp() -> Any:
    from vlp_gym.models.vlp import VLPModel

    model = VLPModel("open_clip:ViT-B-16")
    return model, _told(model)


def _clip() -> Any:
    model: Any = load_reward_model("clip:ViT-B-16/random")
    return model, _told(model)


def _liv() -> Any:
    from vlp_gym.models.liv import LIVModel

    model = LIVModel()
    return model, _told(model)


def _vip() -> Any:
    from vlp_gym.models.vip import VIPModel

    return VIPModel(), torch.randn(1, 1, 1024)


def _r3m() -> Any:
    from vlp_gym.models.r3m import R3MModel

    return R3MModel(), torch.randn(1, 1, 768)


def _roboclip() -> Any:
    from vlp_gym.models.roboclip import RoboCLIPModel

    model = RoboCLIPModel(["press", "the", "button"])
    return model, _told(model)


def _rewind() -> Any:
    from vlp_gym.models.rewind import ReWiNDModel
    from vlp_gym.training.recipes.rewind import SMALL

    model = ReWiNDModel("small", **SMALL)
    return model, _told(model)


def _embedding() -> Any:
    from vlp_gym.models.embedding import EmbeddingModel

    model = EmbeddingModel()
    return model, _told(model)


def _told(model: Any) -> torch.Tensor:
    with torch.no_grad():
        text: torch.Tensor = model.eval().encode_text(["press the button"])
    return text


FAMILIES: dict[str, Callable[[], Any]] = {
    "staged": _staged,
    "vlp": _vlp,
    "clip": _clip,
    "liv": _liv,
    "vip": _vip,
    "r3m": _r3m,
    "roboclip": _roboclip,
    "rewind": _rewind,
    "embedding": _embedding,
}

if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
