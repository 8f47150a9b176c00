"""ReWiND: how far a task is at each frame, by a causal transformer over a sentence and the frames so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.models.backbones.dino_minilm import FRAME_ENCODER, TEXT_ENCODER, DinoMiniLMBackbone
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.protocol import History, Scores
from vlp_gym.models.published.convert import without_prefix

CELL = 32  # numbers that the small backbone keeps of each cell of its grid
UNUSED = "class_token"  # a parameter that the authors' net has and never reads


class ReWiNDModel(nn.Module, CheckpointMixin):
    """ReWiND's progress model (Zhang et al. 2025, section 3.2 and the authors' code); a `RewardModel`.

    The sentence's embedding and those of the frames, each through a linear layer of its own, make one sequence. A
    causal transformer reads it: a frame sees the sentence, the frames before it and itself. An MLP turns each frame's
    state into its progress. Nothing says where in the sequence a frame stands but a bias on the first one, the paper's
    means against reading a clock; yet the more frames there are, the less the first one counts, and that shows.
    `RewindRecipe` trains it.

    ``history`` is "prefix": the model looks at the whole episode so far, subsampled to ``window`` frames, and the
    reward is the progress at the newest of them, as in the paper.

    ``preference`` is the logit of that same progress, p. Not a mean over the frames: two clips are compared by how far
    they get, and the newest frame has seen all others. The logit because Bradley-Terry then says
    ``P(a > b) = p_a (1 - p_b) / (p_a (1 - p_b) + p_b (1 - p_a))``, the probability that it is a that did it, given
    that one of the two did; on p itself no pair could ever be surer than 0.73.

    Args:
        backbone: "dinov2+minilm", the paper's frozen encoders; or "small", the compact model's encoders, trained from
            scratch with the rest (the frame's token is then its whole grid, so that it says what is where).
        window: T, frames one score looks at.
        hidden: width of the transformer.
        layers: of the transformer.
        heads: attention heads of each layer.
        feed_forward: width of each layer's feed-forward part.
        dropout: probability, during training only.
        from_first: also give the model what changed since the first frame, ``[F_t, F_t - F_first]``; beyond the paper.
        frame_size: side of the square that the frames become, pixels; None takes the backbone's own (224, small 112).
        channels: of the small backbone's grid.
        freeze_encoders: keep the small backbone's encoders as they are; the paper's are always.
        frame_encoder: hub id or folder of the DINOv2 model.
        text_encoder: hub id or folder of the MiniLM model.
        truncate: cut sentences that are too long for the backbone instead of raising.
    """

    model_type = "rewind"
    history: History = "prefix"
    backbone: DinoMiniLMBackbone | SmallGrid

    def __init__(
        self,
        backbone: str = "dinov2+minilm",
        *,
        window: int = 16,
        hidden: int = 512,
        layers: int = 4,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        from_first: bool = False,
        frame_size: int | None = None,
        channels: int = 128,
        freeze_encoders: bool = False,
        frame_encoder: str = FRAME_ENCODER,
        text_encoder: str = TEXT_ENCODER,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        if backbone == "dinov2+minilm":
            self.backbone = DinoMiniLMBackbone(frame_encoder, text_encoder, frame_size or 224, truncate=truncate)
        elif backbone == "small":
            self.backbone = SmallGrid(frame_size or 112, channels, frozen=freeze_encoders, truncate=truncate)
        else:
            raise ValueError(f'expected a backbone "dinov2+minilm" or "small", got {backbone!r}')
        self.window, self.from_first = window, from_first
        # The names of the modules are those of the authors' checkpoints.
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

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) in pixels after the backbone's resize."""
        return self.backbone.frame_size

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, float ``[B, 1, D_l]``."""
        return self.backbone.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as one token each, float ``[N, 1, D_v]``."""
        return self.backbone.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The progress at each frame, in [0, 1], and the preference, the logit of that at the newest frame.

        Args:
            frames: frame tokens, float ``[B, T, 1, D_v]``.
            text: text tokens, float ``[B, 1, D_l]``.
            mask: bool ``[B, T]``, True where the frame is real. Others are no keys of the attention, and the first
                frame's bias goes to the first real one; their own progress means nothing.

        Returns:
            Scores with ``progress`` ``[B, T]`` and ``preference`` ``[B]``, float32; ``relevance`` is None.
        """
        logits = self._logits(frames.squeeze(2), text, mask).float()
        return Scores(preference=logits[:, -1], progress=torch.sigmoid(logits))

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds: all but the weights of frozen encoders."""
        return {
            name: value.detach()
            for name, value in self.state_dict().items()
            if not (self.backbone.restorable and name.startswith("backbone."))
        }

    def _logits(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The progress of frames ``[B, T, D_v]`` before the sigmoid, ``[B, T]``."""
        batch, time = mask.shape
        is_first = (mask & (mask.cumsum(1) == 1)).unsqueeze(-1)  # [B, T, 1]
        if self.from_first:
            first = torch.where(is_first, frames, torch.zeros_like(frames)).sum(1, keepdim=True)
            frames = torch.cat([frames, frames - first], -1)
        video = self.video_proj(frames) + is_first * self.first_pos_embed
        sequence = torch.cat([self.text_proj(text), video], 1)  # [B, 1 + T, hidden]
        later = torch.ones(time + 1, time + 1, dtype=torch.bool, device=mask.device).triu(1)
        padding = torch.cat([mask.new_zeros(batch, 1), ~mask], 1)
        # is_causal=None would compare the mask with a causal one on the host, and wait for the device each time.
        states = self.transformer(sequence, later, padding, is_causal=False)
        logits: Tensor = self.progress_head(states[:, 1:]).squeeze(-1)
        return logits


def from_published(state: Mapping[str, Tensor], **options: Any) -> ReWiNDModel:
    """The model with the net of one of the authors' checkpoints, in evaluation mode.

    Args:
        state: name -> tensor; the names may begin with "module." or "model.".
        options: of `ReWiNDModel`; without any it is the paper's, encoders included.

    Raises:
        CheckpointError: the encoders cannot be had, or a weight is missing, not expected or of another shape.
    """
    net = without_prefix(without_prefix(state, "module."), "model.")
    model = ReWiNDModel(**options)
    load_state(model, {name: tensor for name, tensor in net.items() if name != UNUSED}, "the published weights")
    return model.eval()


class SmallGrid(nn.Module):
    """The compact model's encoders with one token a frame: a few numbers of each cell of its grid, side by side.

    A mean over the grid would not say where in the picture the hand is, which is what progress depends on.

    Args:
        frame_size: side of the square that the frames are resized to, pixels, divisible by 16.
        channels: of the grid.
        frozen: train the numbers of each cell, but not the encoders.
        truncate: cut sentences over 64 words instead of raising.
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
        """Switch to training mode, which frozen encoders refuse: batch normalisation would change them."""
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
        """Encode float pixels ``[N, 3, *frame_size]`` in [0, 1]; where training puts its augmented frames."""
        return self.tokens(self.encoders.encode_pixels(pixels))

    def encode_frozen(self, frames: Tensor) -> Tensor:
        """What frozen encoders make of uint8 frames ``[N, H, W, 3]``, float ``[N, K, channels]``."""
        return self.encoders.encode_frames(frames)

    def tokens(self, grid: Tensor) -> Tensor:
        """The trained rest of the way, from `encode_frozen` to float ``[N, 1, frame_dim]``."""
        token: Tensor = self.cell(grid).flatten(1).unsqueeze(1)
        return token
