"""SigLIP2 with LoRA: the pretrained backbone on which "Revisiting the learning objectives" compares the objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, import_extra
from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.backbones.hub import Pretrained
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Factor, Width
from vlp_gym.models.cosine import CosineModel
from vlp_gym.text import check_length, normalize_sentence

NEEDS = "SigLIP2 with LoRA needs"
BASE = "google/siglip2-base-patch16-224"
# The attention of every layer of both towers. Not the pooling head's: PyTorch's attention module reads its output
# weights directly and would bypass an adapter.
ADAPTED = r".*\.encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"


class SigLIP2Model(CosineModel, nn.Module, CheckpointMixin):
    """A frozen SigLIP2 with low-rank adapters in its attention; a `RewardModel`, ``r = cos(v_t, l)``.

    Before training the adapters add nothing. A checkpoint stores only the adapters (5 MB); the base comes from the hub
    or the folder that ``base`` names.

    Args:
        base: hub id or folder of a SigLIP or SigLIP2 of fixed resolution (`transformers.SiglipModel`), with its
            tokenizer. Only safetensors are read.
        rank: r of the adapters; the paper's is 16.
        alpha: their scale is alpha / r; the paper's is 32.
        truncate: truncate sentences over the base's limit instead of raising.

    Raises:
        MissingExtraError: transformers or peft is not installed.
        CheckpointError: the base cannot be loaded, or is of another kind.
    """

    model_type = "siglip2-lora"

    def __init__(self, *, base: str = BASE, rank: Width = 16, alpha: Factor = 32, truncate: bool = False) -> None:
        super().__init__()
        self.truncate = truncate
        peft = import_extra("peft", NEEDS, "vlm")
        model, self.tokenizer = _pretrained(base)
        adapters = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=ADAPTED)
        self.model: Any = peft.inject_adapter_in_model(adapters, model)  # freezes all that is not an adapter
        side = int(model.config.vision_config.image_size)
        self.frame_size = (side, side)
        self.text_length = int(model.config.text_config.max_position_embeddings)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one unit vector each, float ``[B, 1, E]``.

        Raises:
            InstructionError: see `vlp_gym.text`; the limit is the base's, 64 tokens for SigLIP2.
        """
        sentences = [normalize_sentence(sentence).lower() for sentence in instructions]  # as it was pretrained
        for sentence in sentences:
            check_length(len(self.tokenizer(sentence)["input_ids"]), self.text_length, truncate=self.truncate)
        # Padded to the full length: the tower pools the last position.
        rows = self.tokenizer(
            sentences, padding="max_length", truncation=True, max_length=self.text_length, return_tensors="pt"
        )["input_ids"]
        rows = rows.to(self.model.logit_scale.device)
        return F.normalize(self.model.get_text_features(input_ids=rows).pooler_output, dim=-1)[:, None]

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as one unit vector each, float ``[N, 1, E]``."""
        weights = self.model.logit_scale
        pixels = resize_frames(frames.to(weights.device), self.frame_size).permute(0, 3, 1, 2)
        pixels = pixels.to(weights.dtype) / 127.5 - 1  # mean 0.5, standard deviation 0.5
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)[:, None]

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The stored tensors: the adapters."""
        return {key: value.detach() for key, value in self.state_dict().items() if ".lora_" in key}


def _pretrained(name: str) -> tuple[Any, Any]:
    """The base model in float32, and its tokenizer."""
    base = Pretrained(
        name,
        NEEDS,
        "the pretrained base is not there",
        f"Download it where there is a network (hf download {name}), or pass base= the folder of a copy; the embedding "
        "model trains and loads without any download",
    )
    kind = base.config().model_type
    if kind != "siglip":
        raise CheckpointError(
            f"{name}: expected a SigLIP or SigLIP2 of one fixed resolution (model_type 'siglip'), got {kind!r}; "
            f"take {BASE} or another -patch16-NNN"
        )
    return base.weights("SiglipModel", dtype=torch.float32)[0], base.tokenizer()
