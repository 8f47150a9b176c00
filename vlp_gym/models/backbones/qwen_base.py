"""Load a pretrained Qwen2.5-VL or Qwen3-VL from the hub or a folder: weights, architecture, tokenizer."""

from __future__ import annotations

from typing import Any, Literal

import torch

from vlp_gym.errors import CheckpointError
from vlp_gym.models.backbones.hub import Pretrained

Kind = Literal["qwen2_5_vl", "qwen3_vl"]
Precision = Literal["float32", "bfloat16"]

NEEDS = "Qwen's models need transformers"
_CLASSES: dict[Kind, str] = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


def qwen(name: str) -> Pretrained:
    """A Qwen by its hub id or folder."""
    return Pretrained(
        name,
        NEEDS,
        "the {} could not be loaded",
        "It is downloaded once and then cached: connect this machine once, or give a local folder as `base`. "
        'The model "vlp-compact" works offline.',
    )


def load_base(name: str, kind: Kind, precision: Precision) -> tuple[Any, Any]:
    """Load the pretrained model of a kind without its language head, and its tokenizer.

    Raises:
        CheckpointError: it cannot be loaded, is of another kind, or lacks weights.
        MissingExtraError: transformers is not installed.
    """
    base = qwen(name)
    tokenizer, config = base.tokenizer(), base.config(kind)
    model, lacking = base.weights(_CLASSES[kind], config=config, dtype=getattr(torch, precision))
    if lacking:
        raise CheckpointError(
            f"{name}: no full set of weights of {kind}: {', '.join(lacking[:8])} missing or misshaped"
        )
    return model.model, tokenizer
