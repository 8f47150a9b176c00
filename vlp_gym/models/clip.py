"""CLIP as a zero-shot reward: the similarity of a frame and the sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.open_clip import OpenClip
from vlp_gym.models.cosine import CosineModel
from vlp_gym.models.pictures import cropped_pictures, square_pictures


class ClipTowers(OpenClip):
    """The pooled image and text embeddings of an open_clip model, normalised to unit length.

    Args:
        name, pretrained, truncate: see `OpenClip`, also for errors.
        crop: resize the shorter side, bilinear, and crop the centre, instead of resizing the whole frame to a square
            with the interpolation that the weights were made with (bicubic for most, bilinear for CLIPA's).
        antialias: see `cropped_pictures`.
    """

    def __init__(
        self, name: str, pretrained: str | None, *, crop: bool = False, antialias: bool = True, truncate: bool = False
    ) -> None:
        super().__init__(name, pretrained, truncate=truncate)
        self.crop, self.antialias = crop, antialias
        self.interpolation: str = self.model.visual.preprocess_cfg.get("interpolation", "bicubic")

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as unit vectors, float ``[N, 1, D]``."""
        if self.crop:
            pictures = cropped_pictures(
                frames, self.frame_size[0], self.frame_size[0], self.mean.device, antialias=self.antialias
            )
        else:
            pictures = square_pictures(frames, self.frame_size, self.mean.device, self.interpolation)
        return F.normalize(self.model.encode_image((pictures - self.mean) / self.std), dim=-1)[:, None]

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as unit vectors, float ``[B, 1, D]``; errors as `tokenize`."""
        return F.normalize(self.model.encode_text(self.tokenize(instructions)[0]), dim=-1)[:, None]


class ClipReward(CosineModel, nn.Module):
    """Base of the models that encode frames, and sentences unless they do so themselves, with `ClipTowers`."""

    def __init__(self, clip: ClipTowers) -> None:
        super().__init__()
        self.clip = clip
        self.frame_size = clip.frame_size

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as unit vectors, float ``[B, 1, D]``; errors as `OpenClip.tokenize`."""
        return self.clip.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as unit vectors, float ``[N, 1, D]``."""
        return self.clip.encode_frames(frames)


class CLIPModel(ClipReward):
    """The cosine of each frame and the sentence, ``r = cos(v_t, l)``; a `RewardModel` from any open_clip model.

    Args:
        name: an open_clip model.
        pretrained: its weights; see `OpenClip`, also for errors.
        truncate: truncate sentences over the text tower's limit instead of raising.
    """

    def __init__(self, name: str = "ViT-B-32", pretrained: str | None = "openai", *, truncate: bool = False) -> None:
        super().__init__(ClipTowers(name, pretrained, truncate=truncate).requires_grad_(False))

    @classmethod
    def from_spec(cls, spec: str) -> CLIPModel:
        """Build the model "NAME/TAG"; "NAME/random", like "NAME" alone, has random weights."""
        with torch.random.fork_rng(devices=[]):
            return cls(*parse_clip_name(spec))


def parse_clip_name(spec: str) -> tuple[str, str | None]:
    """Split "NAME/TAG" into an open_clip model and its weights.

    >>> parse_clip_name("ViT-B-32/openai"), parse_clip_name("ViT-B-32")
    (('ViT-B-32', 'openai'), ('ViT-B-32', None))
    """
    name, _, tag = spec.partition("/")
    if not name:
        raise ValueError(f'expected "NAME/TAG" of open_clip, such as "ViT-B-32/openai", got {spec!r}')
    return name, None if tag in ("", "random") else tag
