"""The models that are measured: painted ones for any device, VLP, and a Qwen2.5-VL from its config alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.gpu.sizes import Size
from vlp_gym.models.protocol import Scores

SENTENCE = "press the button"


class OnDevice(nn.Module):
    """A painted model on the device that this module is on.

    Args:
        painted: a `PaintedModel`; the tensors that it makes are made there.
    """

    def __init__(self, painted: Any) -> None:
        super().__init__()
        self.painted = painted
        self.window, self.history, self.frame_size = painted.window, painted.history, painted.frame_size
        self.register_buffer("here", torch.zeros(()))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """As the painted model does."""
        with self.here.device:
            return self.painted.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """As the painted model does."""
        with self.here.device:
            return self.painted.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """As the painted model does."""
        with self.here.device:
            return self.painted.score(frames, text, mask)


def vlp(size: Size, device: str) -> Any:
    """VLP over an open_clip architecture with random weights, in eval mode."""
    from vlp_gym.models.vlp import VLPModel

    torch.manual_seed(0)
    if size.backbone == "mini-vit":
        from tests.tiny_clip import add_mini_clips

        with TemporaryDirectory() as folder:
            add_mini_clips(Path(folder))
            model = VLPModel("open_clip:mini-vit", heads=size.heads)
    else:
        model = VLPModel(f"open_clip:{size.backbone}", heads=size.heads)
    return model.to(device).eval()


def in_bf16(model: Any) -> Any:
    """The same model with bfloat16 weights; pictures are rounded where the first convolution takes them."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype),))
    return model.bfloat16()


def qwen_config(size: Size, tokenizer: Any) -> Any:
    """Qwen2.5-VL-3B-Instruct's published numbers, or tiny ones; special tokens are the tokenizer's."""
    from transformers import Qwen2_5_VLConfig

    from tests.tiny_qwen import SPARE, TEXT, VISION, special_ids

    if size.qwen == "tiny":
        text = {**TEXT, "vocab_size": len(tokenizer) + SPARE}
        vision = {**VISION, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    else:
        text = {
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }  # fmt: skip
        vision = {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special_ids(tokenizer))


@contextmanager
def random_qwen(size: Size, device: str) -> Iterator[None]:
    """Within it, SPUR's base is built from a config on the device, with random weights, and nothing is downloaded."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from tests.tiny_qwen import tiny_tokenizer

    def load_base(name: str, kind: str, precision: str) -> tuple[Any, Any]:
        tokenizer = tiny_tokenizer()
        with torch.device(device):
            whole = Qwen2_5_VLForConditionalGeneration._from_config(
                qwen_config(size, tokenizer), dtype=getattr(torch, precision)
            )
        return whole.model, tokenizer

    with patch("vlp_gym.models.spur.load_base", load_base):
        yield


def spur(size: Size, device: str) -> Any:
    """SPUR with adapters over a bfloat16 Qwen2.5-VL of random weights, in eval mode."""
    from vlp_gym.models.spur import SPURModel

    torch.manual_seed(0)
    with random_qwen(size, device):
        model = SPURModel(dtype="bfloat16", **({"frame_size": 56, "window": 4} if size.qwen == "tiny" else {}))
    return model.to(device).eval()
