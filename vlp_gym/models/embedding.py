"""One embedding per frame and one per sentence; the reward is their cosine, the common form of CLIP, R3M, VIP and LIV.

The encoders of `EmbeddingModel` are small enough to train from scratch on two CPU cores.
`vlp_gym.training.recipes.embedding` chooses the objective; the model does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.small import TOKEN_PIXELS, SmallBackbone
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Pixels, Width
from vlp_gym.models.cosine import CosineModel


class EmbeddingModel(CosineModel, nn.Module, CheckpointMixin):
    """A frame encoder and a text encoder of a few hundred thousand weights; a `RewardModel`, ``r = cos(v_t, l)``.

    The convolutional grid is not pooled, because a manipulation reward depends on where the hand is. Its channels are
    reduced at each position, flattened, and read by two layers.

    Args:
        image_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: channels of the last grid.
        reduced: channels per position that the head keeps.
        hidden: width of the head.
        embedding: E, width of both embeddings.
        buckets: size of the text encoder's hash table.
        truncate: truncate sentences over 64 words instead of raising.
    """

    model_type = "embedding"

    def __init__(
        self,
        *,
        image_size: Pixels = 112,
        channels: Width = 128,
        reduced: Width = 32,
        hidden: Width = 256,
        embedding: Width = 128,
        buckets: Width = 4096,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.frame_size = (image_size, image_size)
        self.backbone = SmallBackbone(image_size, channels, buckets, truncate=truncate)
        positions = (image_size // TOKEN_PIXELS) ** 2
        self.frame_head = nn.Sequential(
            nn.Linear(channels, reduced),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(positions * reduced, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding),
        )
        self.text_head = nn.Linear(self.backbone.text_dim, embedding)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one unit vector each, float ``[B, 1, E]``; raises InstructionError."""
        return F.normalize(self.text_head(self.backbone.encode_text(instructions)), dim=-1)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as one unit vector each, float ``[N, 1, E]``."""
        return self._embed(self.backbone.encode_frames(frames))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode float pixels ``[N, 3, *frame_size]`` in [0, 1] (augmented frames), float ``[N, 1, E]``."""
        return self._embed(self.backbone.encode_pixels(pixels))

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.frame_head(tokens), dim=-1)[:, None]
