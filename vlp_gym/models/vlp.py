"""VLP: a preference score for a video and a sentence, by cross-modal attention over a frozen CLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Count, Pixels, Probability, Width
from vlp_gym.models.protocol import History, Scores


@runtime_checkable
class Backbone(Protocol):
    """Encoder of frames and sentences as tokens; an ``nn.Module`` if it has weights.

    Attributes:
        frame_size: (H, W) in pixels, to which it resizes frames.
        frame_dim: D_v, width of a frame token.
        text_dim: D_l, width of a text token.
        restorable: True if rebuilding it restores the same weights, so that a checkpoint need not store them.
    """

    frame_size: tuple[int, int]
    frame_dim: int
    text_dim: int
    restorable: bool

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as float ``[B, L, text_dim]``; padding rows come last and are exactly zero."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]``, as float ``[N, K, frame_dim]``, patches row by row."""
        ...


class Masked(NamedTuple):
    """Tokens after self-attention, ``[B, S, D]``, and their mask, bool ``[B, S]``."""

    tokens: Tensor
    mask: Tensor

    def rows(self, index: Tensor) -> Masked:
        """Some of them, or some several times."""
        return Masked(self.tokens[index], self.mask[index])


class VLPModel(OnBackbone, CheckpointMixin):
    """The VLP preference model ``f(v|l)`` (VLP, section 3.1); a `RewardModel` without progress or relevance.

    The tokens of all frames pass through self-attention layers, those of the sentence through separate ones. One cross-
    attention layer then maps video queries to text keys, another text queries to video keys. Both outputs are averaged
    over tokens and concatenated, and an MLP gives the score.

    Choices where the paper is silent: layers are standard transformer layers (attention, then a feed-forward block of
    four times the width with GELU, residuals, LayerNorm after each); dropout is on attention weights and both residual
    branches; masked frames and padding words are excluded from keys and means.

    **The paper has no temporal position embedding, so the score does not depend on the order of the frames**: a
    reversed video has the same score. ``temporal_embedding=True`` adds learned positions, counted back from the last
    frame.

    Args:
        backbone: "open_clip:NAME/PRETRAINED" or "open_clip:NAME" for random weights; "small" for the small
            encoders, trained from scratch; or a `Backbone` object, for experiments (such a model cannot be saved).
        window: T, frames per score; the paper's is 8.
        self_attention_layers: number of self-attention layers per modality.
        heads: attention heads per layer; must divide both token widths.
        dropout: probability, during training only.
        head: widths of the MLP's hidden layers.
        temporal_embedding: add learned frame positions; not in the paper.
        frame_size: side of the square that frames are resized to, in pixels; None takes the backbone's default.
        train_backbone: train an open_clip backbone and store its weights in checkpoints.
        truncate: truncate sentences over the limit of an open_clip backbone instead of raising `InstructionError`.
    """

    model_type = "vlp"
    history: History = "prefix"
    backbone: Backbone

    def __init__(
        self,
        backbone: str | Backbone = "open_clip:ViT-B-16/openai",
        *,
        window: Count = 8,
        self_attention_layers: Annotated[int, Field(ge=0, le=4096)] = 2,
        heads: Count = 16,
        dropout: Probability = 0.1,
        head: Annotated[Sequence[Width], Field(min_length=1, max_length=64)] = (512, 256),
        temporal_embedding: bool = False,
        frame_size: Pixels | None = None,
        train_backbone: bool = False,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(backbone, str):
            backbone = _build_backbone(backbone, frame_size, train_backbone, truncate)
        self.backbone = backbone
        self.window = window
        dim_v, dim_l = backbone.frame_dim, backbone.text_dim
        self.temporal = nn.Parameter(torch.zeros(window, 1, dim_v)) if temporal_embedding else None
        self.self_video = nn.ModuleList(_Layer(dim_v, dim_v, heads, dropout) for _ in range(self_attention_layers))
        self.self_text = nn.ModuleList(_Layer(dim_l, dim_l, heads, dropout) for _ in range(self_attention_layers))
        self.cross_video = _Layer(dim_v, dim_l, heads, dropout)
        self.cross_text = _Layer(dim_l, dim_v, heads, dropout)
        layers: list[nn.Module] = []
        for width_in, width_out in zip((dim_v + dim_l, *head), head, strict=False):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(head[-1], 1))

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The ``preference`` of each window, float32 ``[B]``; arguments as in `RewardModel.score`.

        Raises:
            ValueError: with ``temporal_embedding``, more frames than ``window``.
        """
        return Scores(preference=self.compare(self.attend_video(frames, mask), self.attend_text(text)))

    def attend_video(self, frames: Tensor, mask: Tensor) -> Masked:
        """The frame tokens of V windows after self-attention, for `compare`; arguments as in `score`.

        Raises:
            ValueError: with ``temporal_embedding``, more frames than ``window``.
        """
        tokens = frames.shape[2]
        if self.temporal is not None:
            if frames.shape[1] > self.window:
                raise ValueError(f"expected at most window={self.window} frames, got {frames.shape[1]}")
            frames = frames + self.temporal[self.window - frames.shape[1] :]  # the last frame always gets the last one
        video, video_mask = frames.flatten(1, 2), mask.repeat_interleave(tokens, dim=1)
        for layer in self.self_video:
            video = layer(video, video, video_mask)
        return Masked(video, video_mask)

    def attend_text(self, text: Tensor) -> Masked:
        """The tokens of sentences after self-attention, for `compare`; argument as in `score`."""
        text_mask = (text != 0).any(-1)
        text_mask[:, 0] = True  # an all-padding sentence would make the softmax NaN
        for layer in self.self_text:
            text = layer(text, text, text_mask)
        return Masked(text, text_mask)

    def compare(self, video: Masked, text: Masked) -> Tensor:
        """The preference of B windows, each under its own sentence, float32 ``[B]``."""
        video_of_text = self.cross_video(video.tokens, text.tokens, text.mask)
        text_of_video = self.cross_text(text.tokens, video.tokens, video.mask)
        pooled = torch.cat([_mean(video_of_text, video.mask), _mean(text_of_video, text.mask)], dim=-1)
        return self.head(pooled).squeeze(-1).float()

    @torch.no_grad()
    def attention_maps(self, frames: Tensor, text: Tensor, mask: Tensor, words: Tensor | None = None) -> Tensor:
        """Attention of the sentence within each frame (VLP, figure 4); call ``eval()`` first to disable dropout.

        The weights of the cross-attention from text queries to video keys, averaged over heads and the sentence's
        tokens without padding, or those that `words`, bool ``[B, L]``, names. Each frame's map is normalised to sum 1,
        so it does not show which frame is attended to; the map of a masked frame is zero.

        Arguments as in `RewardModel.score`; returns float ``[B, T, h, w]`` with ``h = w = sqrt(K)``.

        Raises:
            ValueError: K is not a square number.
        """
        batch, length, tokens = frames.shape[:3]
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"expected a square number of tokens a frame, got {tokens}")
        video, said = self.attend_video(frames, mask), self.attend_text(text)
        weights = self.cross_text.attention.weights(said.tokens, video.tokens, video.mask).mean(1)  # [B, L, T*K]
        maps = _mean(weights, said.mask if words is None else words).view(batch, length, tokens)
        maps = maps / maps.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
        return maps.view(batch, length, side, side)

    def word_tokens(self, instruction: str) -> list[list[int]]:
        """The text tokens of each word, see `AttendingModel`; empty unless the backbone is open_clip's."""
        tokens = getattr(self.backbone, "word_tokens", None)
        return [] if tokens is None else tokens(instruction)


class _Attention(nn.Module):
    """Multi-head attention of queries ``[B, Q, dim]`` to keys ``[B, S, key_dim]``."""

    def __init__(self, dim: int, key_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"expected token widths that {heads} heads divide, got {dim}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(key_dim, dim)
        self.value = nn.Linear(key_dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        query, key, value = self._heads(self.query(queries)), self._heads(self.key(keys)), self._heads(self.value(keys))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, key_mask[:, None, None], dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        """Attention weights ``[B, heads, Q, S]``, as in `forward` but without dropout."""
        query, key = self._heads(self.query(queries)), self._heads(self.key(keys))
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        return logits.masked_fill(~key_mask[:, None, None], -math.inf).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _Layer(nn.Module):
    """A transformer layer: self-attention if keys and queries are the same, else cross-attention."""

    def __init__(self, dim: int, key_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(dim, key_dim, heads, dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, key_mask: Tensor) -> Tensor:
        x = self.norm_attention(queries + self.dropout(self.attention(queries, keys, key_mask)))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean ``[B, D]`` of the tokens ``[B, S, D]`` where the mask ``[B, S]`` is True."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1)


def _build_backbone(spec: str, frame_size: int | None, trainable: bool, truncate: bool) -> Backbone:
    """Build the backbone that a string names; imported lazily."""
    kind, _, rest = spec.partition(":")
    if kind == "open_clip" and rest:
        from vlp_gym.models.backbones.open_clip import OpenClipBackbone

        name, _, pretrained = rest.partition("/")
        return OpenClipBackbone(name, pretrained or None, frame_size, trainable=trainable, truncate=truncate)
    if spec == "small":
        from vlp_gym.models.backbones.small import SmallBackbone

        return SmallBackbone(frame_size or 112, truncate=truncate)
    raise ValueError(f'expected a backbone "open_clip:NAME/PRETRAINED", "open_clip:NAME" or "small", got {spec!r}')
