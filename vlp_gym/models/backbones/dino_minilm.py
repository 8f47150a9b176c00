"""ReWiND's frozen encoders: DINOv2 for frames and MiniLM for sentences, one token each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models.backbones.hub import Pretrained, mean_word

FRAME_ENCODER = "facebook/dinov2-base"
TEXT_ENCODER = "sentence-transformers/all-MiniLM-L12-v2"


class DinoMiniLMBackbone(nn.Module):
    """DINOv2's class token of a frame and the mean of MiniLM's tokens of a sentence, not normalised (ReWiND).

    Both are safetensors loaded by ``transformers``, downloaded once, cached and frozen.

    Args:
        frame_encoder: hub id or folder of a DINOv2 model; the paper's is ViT-B/14, 768-d.
        text_encoder: hub id or folder of a BERT model with its tokenizer; the paper's is MiniLM-L12, 384-d.
        frame_size: side of the square that frames are cropped to, in pixels, divisible by the patch size (14).
        position_offset: added to the number of patches a side when the position embedding is resized; 0.1 in DINOv2's
            own code, which ReWiND's authors use, 0 in `transformers`.
        truncate: truncate sentences over the text encoder's limit instead of raising.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: weights cannot be loaded, are incomplete, or are of another architecture.
        ValueError: the frame size is not a multiple of the patch size.
    """

    restorable = True  # the two names restore the same weights
    frozen = True

    def __init__(
        self,
        frame_encoder: str = FRAME_ENCODER,
        text_encoder: str = TEXT_ENCODER,
        frame_size: int = 224,
        *,
        position_offset: float = 0.0,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        vision, language = _encoder(frame_encoder), _encoder(text_encoder)
        self.vision = _whole(vision, "dinov2", "Dinov2Model")
        self.language = _whole(language, "bert", "BertModel", add_pooling_layer=False)
        self.tokenizer: Any = language.tokenizer()
        patch = self.vision.config.patch_size
        if frame_size < patch or frame_size % patch:
            raise ValueError(f"frame_size: expected a multiple of {patch} pixels, got {frame_size}")
        if position_offset:
            embeddings = self.vision.embeddings
            resized = _resized_positions(embeddings.position_embeddings, frame_size // patch, position_offset)
            embeddings.position_embeddings = nn.Parameter(resized)  # of this size, it is used as it is
        self.truncate = truncate
        self.frame_size = (frame_size, frame_size)
        self.frame_dim: int = self.vision.config.hidden_size
        self.text_dim: int = self.language.config.hidden_size
        self.max_tokens = min(self.tokenizer.model_max_length, self.language.config.max_position_embeddings)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> DinoMiniLMBackbone:
        """Stay in eval mode: dropout in frozen encoders would only add noise."""
        return super().train(False)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames ``[N, H, W, 3]`` of any size as float ``[N, 1, frame_dim]``.

        The authors crop the centre and do not resize. Here frames are first resized so that the shorter side is
        `frame_size` (bilinear, antialiased), or the crop could cut the robot off.
        """
        side = self.frame_size[0]
        images = frames.to(self.vision.device).permute(0, 3, 1, 2).float() / 255
        height, width = images.shape[-2:]
        shorter = min(height, width)
        if shorter != side:
            size = round(height * side / shorter), round(width * side / shorter)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
            height, width = size
        top, left = round((height - side) / 2), round((width - side) / 2)
        images = images[..., top : top + side, left : left + side]
        return self.vision(pixel_values=(images - 0.5) / 0.5).last_hidden_state[:, :1]

    def encode_frozen(self, frames: Tensor) -> Tensor:
        """The frozen part of `encode_frames`: all of it."""
        return self.encode_frames(frames)

    def tokens(self, encoded: Tensor) -> Tensor:
        """The trained part of `encode_frames`: none, returns its input."""
        return encoded

    @torch.no_grad()
    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as float ``[B, 1, text_dim]``; raises InstructionError, see `vlp_gym.text`."""
        return mean_word(self.language, self.tokenizer, instructions, self.max_tokens, truncate=self.truncate)


@torch.no_grad()
def _resized_positions(positions: Tensor, side: int, offset: float) -> Tensor:
    """DINOv2's own resize of position embeddings ``[1, 1 + S * S, D]`` to ``[1, 1 + side * side, D]``."""
    own, grid = positions[:, :1], positions[:, 1:]
    stored = round(grid.shape[1] ** 0.5)
    if stored == side:
        return positions
    square = grid.unflatten(1, (stored, stored)).permute(0, 3, 1, 2).float()
    scale = (side + offset) / stored
    square = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([own, square.flatten(2).transpose(1, 2).to(own.dtype)], 1)


def _encoder(name: str) -> Pretrained:
    return Pretrained(
        name,
        "DINOv2 and MiniLM need",
        "neither a folder with such a model nor one that the hub delivered",
        "It is downloaded once and then cached: connect this machine once, or give the path of a folder. "
        'backbone="small" and the model "vlp-compact" work offline.',
    )


def _whole(encoder: Pretrained, kind: str, model_class: str, **options: Any) -> Any:
    """Load a pretrained model in float32, and check that no weight is missing."""
    encoder.config(kind)
    model, absent = encoder.weights(model_class, **options)
    if absent:
        raise CheckpointError(f"{encoder.name}: expected all weights of a {model_class}, these are not there: {absent}")
    return model.float()
