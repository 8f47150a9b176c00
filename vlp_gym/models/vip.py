"""VIP: the negative distance to a goal picture, in an embedding space learned from human videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.models.backbones.resnet import OnResNet, resnet_layers
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.config import Count, Width
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.models.protocol import History, Scores, frame_scores
from vlp_gym.models.published.convert import without_prefix


class VIPModel(OnResNet, CheckpointMixin):
    """``S = -|v_t - v_goal|`` of a ResNet (Ma et al. 2022); goals are pictures only.

    The instruction is the path of the goal picture, see `read_goal_image`. The value of a frame is S; VIP's reward of a
    step is ``S' - S``, the wrapper's ``reward="delta"``. Frames are resized and cropped as `OnResNet` says.

    Args:
        resnet: layers of the ResNet, 18, 34 or 50; the published one has 50.
        dim: width of its last layer, D.
    """

    model_type = "vip"
    window = 8
    history: History = "sliding"
    value_range = (-float("inf"), 0.0)
    needs_goal = True

    def __init__(self, *, resnet: Count = 50, dim: Width = 1024) -> None:
        super().__init__(resnet, num_classes=dim)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B goal pictures, given by their paths, float ``[B, 1, D]``.

        Raises:
            InstructionError: an instruction is a sentence, or its picture is missing or damaged.
        """
        return torch.cat([self.encode_goals(_goal(instruction)[None]) for instruction in instructions])

    def encode_goals(self, frames: Tensor) -> Tensor:
        """Encode N goal pictures like frames, uint8 ``[N, H, W, 3]`` as float ``[N, 1, D]``."""
        return self.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Negative distance of each frame to the goal, float ``[B, T]``, at most 0; shapes as in `RewardModel`."""
        return frame_scores(-torch.linalg.vector_norm(frames[:, :, 0] - text, dim=-1), mask)


def _goal(instruction: str) -> Tensor:
    picture = read_goal_image(instruction)
    if picture is None:
        raise InstructionError(
            f"VIP knows no language: expected the path of a goal picture (.png, .jpg or .jpeg), got {instruction!r}"
        )
    return picture


def from_published(state: Mapping[str, Tensor]) -> VIPModel:
    """Build the model from a published state, keys under ``module.convnet.``; sizes follow from the tensors.

    Errors as `load_state`.
    """
    weights = without_prefix(state, "module.")
    bias = weights.get("convnet.fc.bias")
    model = VIPModel(resnet=resnet_layers(weights), dim=1024 if bias is None else bias.numel())
    load_state(model, weights, "VIP")
    return model
