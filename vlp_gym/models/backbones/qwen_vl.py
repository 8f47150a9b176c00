"""Qwen's vision-language models in two halves: a frame encoder, and a language model over the tokens of a window.

The halves come from `transformers`; this file connects them. Each frame is a separate image, so that it is encoded once
for all windows. A mask with gaps lets rows of different lengths share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.qwen_base import Kind
from vlp_gym.text import check_length, normalize_sentence

MAX_SENTENCE = 256  # tokens per sentence; Qwen accepts thousands, but then they outnumber the frames' tokens
_MEAN_STD: dict[Kind, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "qwen2_5_vl": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP's
    "qwen3_vl": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Part:
    """A run of S slots of the language model's input sequence.

    Attributes:
        tokens: float ``[B, S, D]``; the first H numbers are the input embedding, the rest DeepStack features.
        mask: bool ``[B, S]``, False where the slot is empty: not attended to, and without a position.
        offset: int64 ``[3, S]``, temporal, height and width offset from the run's position at that slot.
        advance: int64 ``[S]``, how far the slot advances the position of later slots.
    """

    tokens: Tensor
    mask: Tensor
    offset: Tensor
    advance: Tensor


def rotary_positions(mask: Tensor, offset: Tensor, advance: Tensor) -> Tensor:
    """M-RoPE positions (temporal, height, width), int64 ``[3, B, S]`` (Qwen2-VL, section 2.1); 0 in empty slots.

    A word has the same position on all three axes and advances it by one. The tokens of an image at position p have
    temporal p, height p + row, width p + column; the next slot is at p + max(rows, columns). Empty slots do not count,
    so padding changes no position. The arguments are those of a `Part`.
    """
    steps = advance * mask
    start = steps.cumsum(1) - steps
    return (start + offset[:, None]) * mask


def prediction_head(width: int, outputs: int, dropout: float = 0.1) -> nn.Sequential:
    """Robometer's heads: Linear to half the width, LayerNorm, GELU, dropout, Linear; keys ``.0 .1 .4``."""
    half = width // 2
    return nn.Sequential(
        nn.Linear(width, half), nn.LayerNorm(half), nn.GELU(), nn.Dropout(dropout), nn.Linear(half, outputs)
    )


class QwenVL(nn.Module):
    """A Qwen2.5-VL or Qwen3-VL as a frame encoder and a sequence model; frozen, callers may unfreeze it.

    Args:
        model: `transformers.Qwen2_5_VLModel` or `transformers.Qwen3VLModel`.
        tokenizer: its tokenizer.
        frame_size: side of the square that frames are resized to, in pixels; a multiple of 28 (Qwen2.5) or 32 (Qwen3).
        truncate: truncate sentences over `MAX_SENTENCE` tokens instead of raising.

    Attributes:
        frame_size: (H, W) in pixels, the input of the vision tower.
        width: H, width of an embedding.
        tokens_per_frame: K, after the tower merges 2 x 2 patches.

    Raises:
        ValueError: the size does not fit the tower's patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, frame_size: int, *, truncate: bool = False) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.truncate = truncate
        vision = model.config.vision_config
        self._patch, self._merge, self._time = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        cell = self._patch * self._merge
        if frame_size < cell or frame_size % cell:
            raise ValueError(f"frame_size: expected a multiple of {cell} pixels, got {frame_size}")
        self.frame_size = (frame_size, frame_size)
        self.side = frame_size // cell
        self.tokens_per_frame = self.side**2
        self.width: int = model.config.text_config.hidden_size
        self.start_id: int = model.config.vision_start_token_id
        self.end_id: int = model.config.vision_end_token_id
        for name, value in zip(("mean", "std"), _MEAN_STD[model.config.model_type], strict=True):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> QwenVL:
        """Switch to training mode; the frozen vision tower stays in eval mode."""
        super().train(mode)
        self.model.visual.eval()
        return self

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Merged vision tokens, float ``[N, K, D]``, of uint8 frames ``[N, H, W, 3]`` of any size, row by row.

        As in Qwen's image processor: bicubic, antialiased resize, rounded to integers, then normalised; the picture
        fills both slots of the temporal patch. For Qwen3-VL the DeepStack features are concatenated along D.

        Raises:
            TypeError: the frames are not uint8 ``[N, H, W, 3]``.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        images = frames.to(self.mean.device, non_blocking=True).permute(0, 3, 1, 2).float()
        if images.shape[-2:] != self.frame_size:
            images = F.interpolate(images, self.frame_size, mode="bicubic", antialias=True, align_corners=False)
            images = images.clamp(0, 255).round()
        images = (images / 255 - self.mean) / self.std
        # [N, 3, row, m, p, column, m, p] -> patches in the order in which the tower merges them, m x m at a time.
        patches = images.unflatten(3, (self.side, self._merge, self._patch))
        patches = patches.unflatten(2, (self.side, self._merge, self._patch)).permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = patches.unsqueeze(6).expand(*patches.shape[:6], self._time, *patches.shape[6:])
        grid = torch.tensor([[1, self.side * self._merge, self.side * self._merge]], device=images.device)
        seen = self.model.visual(
            patches.flatten(0, 4).flatten(1).to(self.model.dtype), grid_thw=grid.expand(len(frames), 3)
        )
        tokens = torch.cat([seen.pooler_output, *getattr(seen, "deepstack_features", [])], dim=-1)
        return tokens.unflatten(0, (len(frames), self.tokens_per_frame))

    def sentences(self, instructions: Sequence[str]) -> list[str]:
        """Check sentences, and truncate them to `MAX_SENTENCE` tokens if ``truncate`` is True.

        Raises:
            InstructionError: a sentence is blank, or too long and ``truncate`` is False.
        """
        checked = []
        for instruction in instructions:
            sentence = normalize_sentence(instruction)
            ids = self.ids(sentence)
            keep = check_length(len(ids), MAX_SENTENCE, truncate=self.truncate)
            checked.append(sentence if keep == len(ids) else self.tokenizer.decode(ids[:keep]))
        return checked

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; names of special tokens in it become those tokens."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def pack(self, *prompts: Sequence[str]) -> Tensor:
        """Encode prompts as token ids + 1, float32 ``[B, L, C]``, one channel per prompt; padding is zero."""
        ids = [[self.ids(text) for text in channel] for channel in prompts]
        packed = torch.zeros(len(ids[0]), max(len(row) for channel in ids for row in channel), len(ids))
        for column, channel in enumerate(ids):
            for row, numbers in enumerate(channel):
                packed[row, : len(numbers), column] = torch.tensor(numbers) + 1.0
        return packed.to(self.mean.device)

    def words(self, ids: Tensor) -> Part:
        """Embed token ids, int64 ``[B, S]``, -1 for an empty slot."""
        embedded = self.model.language_model.embed_tokens(ids.clamp(min=0))
        return self.vectors(embedded, ids >= 0)

    def vectors(self, embedded: Tensor, mask: Tensor) -> Part:
        """Use embeddings ``[B, S, H]`` with mask ``[B, S]`` like words."""
        ahead = torch.ones(embedded.shape[1], dtype=torch.int64, device=embedded.device)
        return Part(embedded, mask, torch.zeros_like(ahead).expand(3, -1), ahead)

    def prompt(self, text: Tensor, channel: int = 0) -> Part:
        """Embed one channel of `pack`'s ``[B, L, C]``; the first slot always counts, so that no row is empty."""
        ids = text[..., channel].round().long() - 1
        part = self.words(ids)
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        return Part(part.tokens, part.mask | first, part.offset, part.advance)

    def video(self, frames: Tensor, mask: Tensor, before: Tensor | None = None, after: Sequence[int] = ()) -> Part:
        """Each frame as: words before it, vision start, its K tokens row by row, vision end, words after it.

        Args:
            frames: from `encode_frames`, float ``[B, T, K, D]``.
            mask: bool ``[B, T]``, True where the frame is real; others leave all their slots empty.
            before: token ids, int64 ``[B, T, C]``, -1 for an empty slot.
            after: token ids.

        Returns:
            T runs of C + 1 + K + 1 + len(after) slots each.
        """
        batch, time = mask.shape
        device = frames.device
        start, *rest = (
            torch.tensor(i, device=device).expand(batch * time, 1) for i in (self.start_id, self.end_id, *after)
        )
        lead = [] if before is None else [before.flatten(0, 1)]
        cells = torch.arange(self.tokens_per_frame, device=device)
        ahead = torch.where(cells == cells[-1], self.side, 0)
        offset = torch.stack([torch.zeros_like(cells), cells // self.side, cells % self.side])
        real = torch.ones(batch * time, self.tokens_per_frame, dtype=torch.bool, device=device)
        pieces = [
            *(self.words(ids) for ids in (*lead, start)),
            Part(frames.flatten(0, 1).to(self.model.dtype), real, offset, ahead),
            *(self.words(ids) for ids in rest),
        ]
        one = _joined(pieces)
        there = one.mask.unflatten(0, (batch, time)) & mask.unsqueeze(-1)
        tokens = one.tokens.unflatten(0, (batch, time)).flatten(1, 2)
        return Part(tokens, there.flatten(1, 2), one.offset.repeat(1, time), one.advance.repeat(time))

    def forward(self, parts: Sequence[Part]) -> list[Tensor]:
        """Hidden states after the last norm, float32 ``[B, S, H]`` for each part; meaningless in empty slots.

        The first slot of each row must not be empty: attention over nothing would be NaN.
        """
        whole = _joined(parts)
        states, *deeper = whole.tokens.split(self.width, dim=-1)
        extra: dict[str, Any] = {}
        if deeper:  # zero at words, so it can be added everywhere
            everywhere = torch.ones_like(whole.mask)
            extra = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": [d.flatten(0, 1) for d in deeper]}
        hidden = self.model.language_model(
            inputs_embeds=states,
            attention_mask=whole.mask,
            position_ids=rotary_positions(whole.mask, whole.offset, whole.advance),
            use_cache=False,
            **extra,
        ).last_hidden_state
        return list(hidden.float().split([part.mask.shape[1] for part in parts], dim=1))


def _joined(parts: Sequence[Part]) -> Part:
    """Concatenate parts; words get zeros in place of DeepStack features."""
    width = max(part.tokens.shape[-1] for part in parts)
    tokens = [F.pad(part.tokens, (0, width - part.tokens.shape[-1])) for part in parts]
    return Part(
        torch.cat(tokens, dim=1),
        torch.cat([part.mask for part in parts], dim=1),
        torch.cat([part.offset for part in parts], dim=1),
        torch.cat([part.advance for part in parts]),
    )
