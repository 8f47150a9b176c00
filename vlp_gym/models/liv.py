"""LIV: CLIP fine-tuned on human videos, so that the similarity of frame and goal grows with task progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.clip import ClipReward, ClipTowers
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.models.published.convert import without_prefix

_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # entries of OpenAI's state dicts


class LIVModel(ClipReward, CheckpointMixin):
    """``r = cos(v_t, l)`` with LIV's joint space (Ma et al. 2023); the goal is a sentence or a picture.

    A goal picture is named by its path, see `read_goal_image`. The shorter side of a frame is resized to 224 pixels
    and the centre square cropped, as in LIV's code.

    Args:
        architecture: an open_clip model; the published one is OpenAI's RN50 (with QuickGELU), 1024-d.
        antialias: average over the pixels that a smaller picture leaves out. LIV's code does not, for frames that are
            tensors, which changes the reward by up to 0.04; `from_published` sets False.
        truncate: truncate sentences over the text tower's limit instead of raising.
    """

    model_type = "liv"
    needs_goal = False

    added_later: ClassVar[Mapping[str, Any]] = {"antialias": True}

    def __init__(self, *, architecture: str = "RN50-quickgelu", antialias: bool = True, truncate: bool = False) -> None:
        super().__init__(ClipTowers(architecture, None, crop=True, antialias=antialias, truncate=truncate))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B goals, sentences or paths of pictures, as unit vectors, float ``[B, 1, D]``.

        Raises:
            InstructionError: a sentence is blank or too long, or a picture is missing or damaged.
        """
        return torch.cat([self._encode(instruction) for instruction in instructions])

    def encode_goals(self, frames: Tensor) -> Tensor:
        """Encode N goal pictures like frames, uint8 ``[N, H, W, 3]`` as float ``[N, 1, D]``."""
        return self.encode_frames(frames)

    def _encode(self, instruction: str) -> Tensor:
        picture = read_goal_image(instruction)
        return self.clip.encode_text([instruction]) if picture is None else self.encode_goals(picture[None])


def from_published(state: Mapping[str, Tensor], **options: Any) -> LIVModel:
    """Build the model from a published state: CLIP's keys under ``module.model.``, ``module.`` or ``model.``.

    Half precision becomes float32. Options are those of `LIVModel`, with ``antialias`` False by default; errors
    as `load_state`.
    """
    weights = without_prefix(without_prefix(state, "module."), "model.")
    model = LIVModel(**{"antialias": False, **options})
    renamed = {f"clip.model.{key}": value for key, value in weights.items() if key not in _NOT_WEIGHTS}
    load_state(model, renamed, "LIV")
    return model
