"""LIV: a CLIP fine-tuned on human videos, so that the similarity of frame and goal grows as the task goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.clip import ClipTowers, cosine
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.models.protocol import History, Scores, frame_scores
from vlp_gym.models.published.convert import without_prefix

_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # entries of OpenAI's own state dicts


class LIVModel(nn.Module, CheckpointMixin):
    """``r = cos(v_t, l)`` with LIV's joint space (Ma et al. 2023); the goal is a sentence or a picture.

    A goal picture is named by its path, see `read_goal_image`. Frames are RGB; the shorter side is resized to 224
    pixels and the middle square cut out, as LIV's own code does.

    Args:
        architecture: an open_clip model; the published one is OpenAI's RN50 (with QuickGELU), 1024-d.
        truncate: cut a sentence that is longer than the text tower takes, instead of raising.
    """

    model_type = "liv"
    window = 8
    history: History = "sliding"
    value_range = (-1.0, 1.0)
    needs_goal = False

    def __init__(self, *, architecture: str = "RN50-quickgelu", truncate: bool = False) -> None:
        super().__init__()
        self.clip = ClipTowers(architecture, None, crop=True, truncate=truncate)
        self.frame_size = self.clip.frame_size

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B goals, sentences or paths of pictures, as unit vectors, float ``[B, 1, D]``.

        Raises:
            InstructionError: a sentence is blank or too long, or a picture is missing or damaged.
        """
        return torch.cat([self._encode(instruction) for instruction in instructions])

    def encode_goals(self, frames: Tensor) -> Tensor:
        """Encode N goal pictures as frames are encoded, float ``[N, 1, D]``."""
        return self.encode_frames(frames)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as unit vectors, float ``[N, 1, D]``."""
        return self.clip.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The cosine of each frame and the goal, ``[B, T]`` in [-1, 1]; shapes as in `RewardModel`."""
        return frame_scores(cosine(frames[:, :, 0], text), mask)

    def _encode(self, instruction: str) -> Tensor:
        picture = read_goal_image(instruction)
        return self.clip.encode_text([instruction]) if picture is None else self.encode_goals(picture[None])


def from_published(
    state: Mapping[str, Tensor], *, architecture: str = "RN50-quickgelu", truncate: bool = False
) -> LIVModel:
    """The model of a published state: CLIP's keys under ``module.model.``, ``module.`` or ``model.``.

    Args:
        state: tensors by name; half precision becomes float32.
        architecture: of the model.
        truncate: of the model.

    Raises:
        CheckpointError: keys are missing, unexpected or misshaped; it lists them.
    """
    weights = without_prefix(without_prefix(state, "module."), "model.")
    model = LIVModel(architecture=architecture, truncate=truncate)
    renamed = {f"clip.model.{key}": value for key, value in weights.items() if key not in _NOT_WEIGHTS}
    load_state(model, renamed, "LIV")
    return model
