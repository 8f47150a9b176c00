"""Two small CLIP architectures that open_clip's own constructors build, by name, and frames to show them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
MINI = {
    "mini-vit": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "mini-resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
}
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


def add_mini_clips(folder: Path) -> None:
    """Make "mini-vit" and "mini-resnet" known to open_clip; their files lie in `folder` from then on."""
    import open_clip

    for name, vision in MINI.items():
        config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def random_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise, uint8 ``[count, height, width, 3]``."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions, length 1."""
    return vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))
