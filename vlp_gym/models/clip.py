"""CLIP as a zero-shot reward: the similarity of a frame and the sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.open_clip import count_tokens, load_open_clip
from vlp_gym.models.pictures import cropped_pictures, per_channel, square_pictures
from vlp_gym.models.protocol import History, Scores, frame_scores
from vlp_gym.text import check_length, normalize_instruction


class ClipTowers(nn.Module):
    """The pooled image and text embeddings of an open_clip model, normalised to unit length.

    Args:
        name: an open_clip model, see ``open_clip.list_models()``. A tag made with QuickGELU (OpenAI's are) gets it.
        pretrained: a tag of ``open_clip.list_pretrained()``, downloaded once and cached by open_clip; the path of a
            ``.safetensors`` file; or None for random weights.
        crop: resize the shorter side and crop the centre, instead of resizing the whole frame to a square.
        truncate: truncate sentences over the text tower's limit instead of raising.

    Attributes:
        frame_size: (H, W) in pixels, the tower's input.

    Raises:
        MissingExtraError: open_clip, or a package that this model's tokenizer needs, is not installed.
        ValueError: open_clip knows no such model or tag.
        CheckpointError: the weights cannot be downloaded or do not fit the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, pretrained: str | None, *, crop: bool = False, truncate: bool = False) -> None:
        super().__init__()
        self.crop, self.truncate = crop, truncate
        self.model, self.tokenizer = load_open_clip(name, pretrained, None)
        size = self.model.visual.image_size
        self.frame_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("mean", per_channel(self.model.visual.image_mean), persistent=False)
        self.register_buffer("std", per_channel(self.model.visual.image_std), persistent=False)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as unit vectors, float ``[N, 1, D]``."""
        if self.crop:
            pictures = cropped_pictures(frames, self.frame_size[0], self.frame_size[0], self.mean.device)
        else:
            pictures = square_pictures(frames, self.frame_size, self.mean.device)
        features: Tensor = self.model.encode_image((pictures - self.mean) / self.std)
        return F.normalize(features, dim=-1)[:, None]

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as unit vectors, float ``[B, 1, D]``.

        Raises:
            InstructionError: a sentence is blank, or over the text tower's limit and ``truncate`` is False.
        """
        sentences = [normalize_instruction(instruction) for instruction in instructions]
        limit = self.model.context_length
        for sentence in sentences:
            check_length(count_tokens(self.tokenizer, sentence), limit, truncate=self.truncate)
        tokens = self.tokenizer(sentences, context_length=limit).to(self.mean.device)
        features: Tensor = self.model.encode_text(tokens)
        return F.normalize(features, dim=-1)[:, None]


class CLIPModel(nn.Module):
    """The cosine of each frame and the sentence, ``r = cos(v_t, l)``; a `RewardModel` from any open_clip model.

    Args:
        name: an open_clip model.
        pretrained: its weights; see `ClipTowers`, also for errors.
        truncate: truncate sentences over the text tower's limit instead of raising.
    """

    window = 8
    history: History = "sliding"
    value_range = (-1.0, 1.0)

    def __init__(self, name: str = "ViT-B-32", pretrained: str | None = "openai", *, truncate: bool = False) -> None:
        super().__init__()
        self.clip = ClipTowers(name, pretrained, truncate=truncate).requires_grad_(False)
        self.frame_size = self.clip.frame_size

    @classmethod
    def from_spec(cls, spec: str) -> CLIPModel:
        """Build the model "NAME/TAG"; "NAME/random", like "NAME" alone, has random weights."""
        with torch.random.fork_rng(devices=[]):
            return cls(*parse_clip_name(spec))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as unit vectors, float ``[B, 1, D]``; see `ClipTowers.encode_text`."""
        return self.clip.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as unit vectors, float ``[N, 1, D]``."""
        return self.clip.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The cosine of each frame, ``[B, T]`` in [-1, 1]; shapes as in `RewardModel`."""
        return frame_scores(cosine(frames[:, :, 0], text), mask)


def cosine(frames: Tensor, text: Tensor) -> Tensor:
    """Cosines ``[B, T]`` in [-1, 1] of unit vectors: frames ``[B, T, D]``, the text ``[B, 1, D]``."""
    return (frames * text).sum(-1).clamp(-1, 1)  # rounding may exceed the range


def parse_clip_name(spec: str) -> tuple[str, str | None]:
    """Split "NAME/TAG" into an open_clip model and its weights.

    >>> parse_clip_name("ViT-B-32/openai"), parse_clip_name("ViT-B-32")
    (('ViT-B-32', 'openai'), ('ViT-B-32', None))
    """
    name, _, tag = spec.partition("/")
    if not name:
        raise ValueError(f'expected "NAME/TAG" of open_clip, such as "ViT-B-32/openai", got {spec!r}')
    return name, None if tag in ("", "random") else tag
