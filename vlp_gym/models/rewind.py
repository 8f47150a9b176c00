"""ReWiND: per-frame progress from a causal transformer over the sentence and the frames so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlp_gym.models.backbones.dino_minilm import FRAME_ENCODER, TEXT_ENCODER, DinoMiniLMBackbone
from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.config import Count, Pixels, Probability, Width
from vlp_gym.models.protocol import History, Scores
from vlp_gym.models.published.convert import without_prefix

CELL = 32  # numbers that `SmallGrid` keeps of each grid cell
DINOV2_OFFSET = 0.1  # of its own code's resize of position embeddings, see `DinoMiniLMBackbone`
UNUSED = "class_token"  # a parameter of the authors' network that it never uses


class ReWiNDModel(OnBackbone, CheckpointMixin):
    """ReWiND's progress model (Zhang et al. 2025, section 3.2 and the authors' code); a `RewardModel`.

    The embeddings of the sentence and of the frames, projected linearly, form one sequence. In a causal transformer
    each frame attends to the sentence, earlier frames and itself; an MLP maps its state to progress. The only position
    information is a bias on the first frame, which should keep the model from counting frames. Still, the first frame
    weighs less the more frames there are, and the model can use that. `RewindRecipe` trains it.

    ``history`` is "prefix": the whole episode so far, subsampled to ``window`` frames. The reward is the progress p at
    the newest frame, as in the paper.

    ``preference`` is the logit of p: clips are compared by how far they get. With the logit, Bradley-Terry gives
    ``P(a > b) = p_a (1 - p_b) / (p_a (1 - p_b) + p_b (1 - p_a))``, the probability that a succeeded, given that one of
    the two did; with p itself, no probability could exceed 0.73.

    Args:
        backbone: "dinov2+minilm", the paper's frozen encoders; or "small", the small encoders, trained from scratch
            with the rest, see `SmallGrid`.
        window: T, frames per score.
        hidden: width of the transformer.
        layers: number of its layers.
        heads: attention heads per layer.
        feed_forward: width of the feed-forward layers.
        dropout: probability, during training only.
        from_first: also give the model the change since the first frame, ``[F_t, F_t - F_first]``; not in the paper.
        frame_size: side of the square input, in pixels; None takes the backbone's default (224, small 112).
        channels: channels of the small backbone's grid.
        freeze_encoders: freeze the small backbone's encoders; the paper's are always frozen.
        frame_encoder: hub id or folder of the DINOv2 model.
        text_encoder: hub id or folder of the MiniLM model.
        published: score as the authors' code does: an episode of fewer than ``window`` frames is filled up with copies
            of its last frame and judged at the last of them, not masked; the places of the frames of a longer one are
            rounded down; and DINOv2's position embedding is resized by its own code's rule. `from_published` sets it.
        truncate: truncate sentences over the backbone's limit instead of raising.
    """

    model_type = "rewind"
    history: History = "prefix"
    added_later: ClassVar[Mapping[str, Any]] = {"published": False}
    backbone: DinoMiniLMBackbone | SmallGrid

    def __init__(
        self,
        backbone: str = "dinov2+minilm",
        *,
        window: Count = 16,
        hidden: Width = 512,
        layers: Count = 4,
        heads: Count = 8,
        feed_forward: Width = 2048,
        dropout: Probability = 0.1,
        from_first: bool = False,
        frame_size: Pixels | None = None,
        channels: Width = 128,
        freeze_encoders: bool = False,
        frame_encoder: str = FRAME_ENCODER,
        text_encoder: str = TEXT_ENCODER,
        published: bool = False,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        if backbone == "dinov2+minilm":
            self.backbone = DinoMiniLMBackbone(
                frame_encoder,
                text_encoder,
                frame_size or 224,
                position_offset=DINOV2_OFFSET if published else 0.0,
                truncate=truncate,
            )
        elif backbone == "small":
            self.backbone = SmallGrid(frame_size or 112, channels, frozen=freeze_encoders, truncate=truncate)
        else:
            raise ValueError(f'expected a backbone "dinov2+minilm" or "small", got {backbone!r}')
        self.window, self.from_first, self.published = window, from_first, published
        if published:
            self.history = "prefix-floor"
        # Module names are those of the authors' checkpoints.
        self.video_proj = nn.Linear(self.backbone.frame_dim * (1 + from_first), hidden)
        self.text_proj = nn.Linear(self.backbone.text_dim, hidden)
        self.first_pos_embed = nn.Parameter(torch.randn(1, hidden))
        layer = nn.TransformerEncoderLayer(hidden, heads, feed_forward, dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.progress_head = nn.Sequential(
            nn.Linear(hidden, hidden // 2),
            nn.LayerNorm(hidden // 2),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden // 2, 1),
        )

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; arguments as in `RewardModel.score`, with one token per frame and per sentence.

        Masked frames are not attended to, and their progress is meaningless; the first frame's bias goes to the first
        real frame.

        Returns:
            Scores with ``progress`` at each frame, float32 ``[B, T]`` in [0, 1], and ``preference``, float32 ``[B]``,
            the logit of the newest frame's.
        """
        fill = self._filled if self.published else self._logits
        logits = fill(frames.squeeze(2), text, mask).float()
        return Scores(preference=logits[:, -1], progress=torch.sigmoid(logits))

    def _filled(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """As `_logits`, but real frames come first, then copies of the last one; it is judged at the last of them."""
        time = mask.shape[1]
        padding = time - mask.sum(1, keepdim=True)
        slots = torch.arange(max(self.window, time), device=mask.device)
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        filled = frames[rows, (slots + padding).clamp(max=time - 1)]
        logits = self._logits(filled, text, torch.ones(filled.shape[:2], dtype=torch.bool, device=mask.device))
        own = (torch.arange(time, device=mask.device) - padding).clamp(min=0)
        return torch.cat([logits[rows, own[:, :-1]], logits[:, -1:]], 1)

    def _logits(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Progress logits ``[B, T]`` of frames ``[B, T, D_v]``."""
        batch, time = mask.shape
        is_first = (mask & (mask.cumsum(1) == 1)).unsqueeze(-1)  # [B, T, 1]
        if self.from_first:
            first = torch.where(is_first, frames, torch.zeros_like(frames)).sum(1, keepdim=True)
            frames = torch.cat([frames, frames - first], -1)
        video = self.video_proj(frames) + is_first * self.first_pos_embed
        sequence = torch.cat([self.text_proj(text), video], 1)  # [B, 1 + T, hidden]
        later = torch.ones(time + 1, time + 1, dtype=torch.bool, device=mask.device).triu(1)
        padding = torch.cat([mask.new_zeros(batch, 1), ~mask], 1)
        # is_causal=None would compare the mask with a causal one on the host and synchronise with the device.
        states = self.transformer(sequence, later, padding, is_causal=False)
        return self.progress_head(states[:, 1:]).squeeze(-1)


def from_published(state: Mapping[str, Tensor], **options: Any) -> ReWiNDModel:
    """Build the model from one of the authors' checkpoints, in eval mode; names may begin with "module." or "model.".

    Options are those of `ReWiNDModel`, whose defaults are the paper's but for ``published``, True here; errors as its
    constructor and `load_state`.
    """
    net = without_prefix(without_prefix(state, "module."), "model.")
    model = ReWiNDModel(**{"published": True, **options})
    load_state(model, {name: tensor for name, tensor in net.items() if name != UNUSED}, "the published weights")
    return model.eval()


class SmallGrid(nn.Module):
    """The small encoders with one token per frame: a few numbers of each grid cell, concatenated.

    A mean over the grid would lose the position of the hand, on which progress depends.

    Args:
        frame_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: channels of the grid.
        frozen: train only the projection of each cell, not the encoders.
        truncate: truncate sentences over 64 words instead of raising.
    """

    restorable = False

    def __init__(self, frame_size: int, channels: int, *, frozen: bool = False, truncate: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.encoders = SmallBackbone(frame_size, channels, truncate=truncate).requires_grad_(not frozen)
        if frozen:
            self.encoders.eval()
        self.cell = nn.Sequential(nn.Linear(channels, CELL), nn.ReLU())
        self.frame_size = self.encoders.frame_size
        self.frame_dim = CELL * (frame_size // 16) ** 2
        self.text_dim = self.encoders.text_dim

    def train(self, mode: bool = True) -> SmallGrid:
        """Switch to training mode; frozen encoders stay in eval mode, or batch norm would change them."""
        super().train(mode)
        if self.frozen:
            self.encoders.eval()
        return self

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as float ``[B, 1, text_dim]``."""
        return self.encoders.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames ``[N, H, W, 3]`` of any size as float ``[N, 1, frame_dim]``."""
        return self.tokens(self.encoders.encode_frames(frames))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode float pixels ``[N, 3, *frame_size]`` in [0, 1] (augmented frames), float ``[N, 1, frame_dim]``."""
        return self.tokens(self.encoders.encode_pixels(pixels))

    def encode_frozen(self, frames: Tensor) -> Tensor:
        """The frozen part of `encode_frames`: uint8 frames ``[N, H, W, 3]`` as float ``[N, K, channels]``."""
        return self.encoders.encode_frames(frames)

    def tokens(self, grid: Tensor) -> Tensor:
        """The trained part of `encode_frames`: ``[N, K, channels]`` from `encode_frozen` as ``[N, 1, frame_dim]``."""
        return self.cell(grid).flatten(1).unsqueeze(1)
