"""What the small models share: each frame is seen beside the first one, and a sentence is a topic and a direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.models.backbones.hashed_words import HashedWords
from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.backbones.small import TOKEN_PIXELS, SmallBackbone

DIRECTIONS = 16  # numbers of the sentence that the progress sees
VERB_DROPOUT = 0.05  # word dropout; low, as a sentence without its verb has no direction


class OnPairs(OnBackbone):
    """Base class; subclasses add ``verbs``, see `direction_words`, and their heads.

    Args:
        image_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: width of a frame token.
        hidden: width of a state.
        buckets: size of the text encoder's hash table.
        truncate: truncate sentences over 64 words instead of raising.
    """

    verbs: HashedWords

    def __init__(self, image_size: int, channels: int, hidden: int, buckets: int, truncate: bool) -> None:
        super().__init__()
        self.backbone = SmallBackbone(image_size, channels, buckets, truncate=truncate)
        self.pair = nn.Linear(2 * channels, hidden)
        side = image_size // TOKEN_PIXELS
        half = -(-side // 2)
        self.where = nn.Sequential(  # no pooling: positions matter, a hand beside the button is not on it
            nn.ReLU(),
            nn.Unflatten(2, (side, side)),
            nn.Conv2d(hidden, hidden, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden * half**2, hidden),
            nn.LayerNorm(hidden),
        )

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, float ``[B, 1, D]``: the topic and the direction, concatenated."""
        return torch.cat([self.backbone.encode_text(instructions), self.verbs(instructions)], 2)

    def encode_in_context(self, frames: Tensor, first: Tensor) -> Tensor:
        """See `ContextualModel`; returns float ``[N, 1, hidden + 2 * channels]``: the state and the first frame."""
        return torch.cat([self.state_since(frames[:, None], first)[:, 0], overview(first)], 1)[:, None]

    def split_context(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """From `encode_in_context`, ``[B, T, 1, D]``: states ``[B, T, hidden]``, first frames ``[B, 2 * channels]``."""
        states, firsts = frames.squeeze(2).split([self.pair.out_features, 2 * self.backbone.frame_dim], -1)
        return states, firsts[:, -1]

    def state_since(self, frames: Tensor, first: Tensor) -> Tensor:
        """State ``[B, T, hidden]`` of frames ``[B, T, K, channels]``: their tokens and the change since `first`."""
        pair = self.pair(torch.cat([frames, frames - first[:, None]], -1)).flatten(0, 1)  # [B * T, K, hidden]
        state: Tensor = self.where(pair.transpose(1, 2)).unflatten(0, frames.shape[:2])
        return state

    def topic_and_direction(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Split sentence tokens ``[M, 1, D]`` into topic ``[M, text_dim]`` and direction ``[M, verbs.dim]``."""
        about, direction = text[:, 0].split([self.backbone.text_dim, self.verbs.dim], 1)
        return about, direction


def direction_words(buckets: int, truncate: bool) -> HashedWords:
    """A second word table: the relevance's words are still trained when the progress is frozen."""
    return HashedWords(buckets, word_dropout=VERB_DROPOUT, truncate=truncate)


def overview(first: Tensor) -> Tensor:
    """Mean and maximum over the tokens of first frames ``[B, K, channels]``, as ``[B, 2 * channels]``."""
    return torch.cat([first.mean(1), first.amax(1)], 1)


def embedding_head(width: int, hidden: int, embedding: int) -> nn.Sequential:
    """An MLP; its batch norm removes what all inputs share, else all embeddings start and stay alike."""
    return nn.Sequential(
        nn.BatchNorm1d(width, affine=False), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embedding)
    )
