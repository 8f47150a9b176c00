"""What a label costs when the frame tokens of the segments are kept, against encoding their frames again.

python tests/benchmarks/labels.py --out runs/bench
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measure import alternate, machine, spread, timed

from vlp_gym import load_reward_model
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.preferences import ModelLabeler, SegmentStore
from vlp_gym.storage import write_atomic


@dataclass(frozen=True)
class Options:
    """Measure the labels of whole segments."""

    model: str = "vlp-compact"
    """Reward model with pooled tokens."""
    backbone: str = "ViT-B-16"
    """open_clip backbone of the token-level model, with random weights."""
    instruction: str = "press the button"
    """For the labels."""
    pairs: int = 20
    """Labelled in one call; of the token-level model, a tenth."""
    length: int = 25
    """Steps of a segment."""
    blocks: int = 5
    """Blocks of A B B A."""
    threads: int = 1
    """Torch threads."""
    out: Path = Path("runs/bench")
    """Where labels.json goes."""


def main(options: Options) -> None:
    """Measure both models and print a table."""
    from vlp_gym.models.backbones.open_clip import OpenClipBackbone
    from vlp_gym.models.vlp import VLPModel

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    models: dict[str, tuple[Any, int]] = {
        f"pooled ({options.model})": (load_reward_model(options.model), options.pairs),
        f"token-level (vlp, {options.backbone})": (
            VLPModel(OpenClipBackbone(options.backbone, None)).eval(),
            max(options.pairs // 10, 1),
        ),
    }
    result: dict[str, Any] = {"machine": machine(), "n": 2 * options.blocks}
    for name, (model, pairs) in models.items():
        again, kept = costs(model, pairs, options)
        result[f"cost of a label, encoded again / tokens kept, {name}, T={model.window}"] = spread(again / kept)
        result[f"ms a label with kept tokens, {name}"] = spread(kept * 1e3)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "labels.json", json.dumps(result, indent=2).encode())
    for name, value in result.items():
        print(f"{name:75} {value}")


@torch.inference_mode()
def costs(model: Any, pairs: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Seconds a label, encoded again and with kept tokens; both give the same labels."""
    rng = np.random.default_rng(0)
    store = SegmentStore(options.length, frame_size=model.frame_size[0])
    for episode in range(2 * pairs):
        frames = torch.from_numpy(rng.integers(0, 256, (options.length + 1, *model.frame_size, 3), np.uint8))
        for step in range(1, options.length + 1):
            store.add(0, np.zeros(4), np.zeros(2), 0.0, Ticket(0, episode, step))
        for step in (
            np.linspace(0, options.length, model.window).round().astype(int).tolist()
        ):  # the frames of the window
            answer = Answer(Ticket(0, episode, step), FrameScore(0.0, 0.0, None))
            store.on_answer(answer, frames[step : step + 1].numpy(), model.encode_frames(frames[step : step + 1]))
        store.end(0)
    first, second = (
        store.cut([(number, 0, options.length) for number in range(start, start + pairs)]) for start in (0, pairs)
    )
    keeps = ModelLabeler(QueryEngine(model), options.instruction, soft=True)
    encodes = ModelLabeler(model, options.instruction, soft=True)
    np.testing.assert_allclose(keeps(first, second), encodes(first, second), atol=1e-3)
    again, kept = alternate(
        lambda: timed(lambda: encodes(first, second), 1), lambda: timed(lambda: keeps(first, second), 1), options.blocks
    )
    return again / pairs, kept / pairs


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
