"""torchvision's ResNets, the frame encoders of VIP and R3M."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlp_gym.errors import import_extra
from vlp_gym.models.pictures import IMAGENET_MEAN, IMAGENET_STD, cropped_pictures, per_channel


class OnResNet(nn.Module):
    """Base of the models that encode frames with a ResNet, ``convnet``, of random weights.

    The shorter side of a frame is resized to 256 pixels and the centre 224 x 224 cropped; frames of 224 x 224 stay
    unchanged.

    Args:
        layers: layers of the ResNet, 18, 34 or 50.
        options: for torchvision, such as ``num_classes``.

    Raises:
        ValueError: another number of layers.
        MissingExtraError: torchvision is not installed.
    """

    frame_size = (224, 224)
    mean: Tensor
    std: Tensor

    def __init__(self, layers: int, **options: Any) -> None:
        super().__init__()
        if layers not in (18, 34, 50):
            raise ValueError(f"resnet: expected 18, 34 or 50 layers, got {layers}")
        torchvision = import_extra("torchvision", "a ResNet needs torchvision", "clip")
        self.convnet = getattr(torchvision.models, f"resnet{layers}")(weights=None, **options)
        self.register_buffer("mean", per_channel(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", per_channel(IMAGENET_STD), persistent=False)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, float ``[N, 1, D]``."""
        pictures = cropped_pictures(frames, 256, self.frame_size[0], self.mean.device)
        return self.convnet((pictures - self.mean) / self.std)[:, None]


def resnet_layers(state: dict[str, Tensor]) -> int:
    """Number of layers of the ResNet whose tensors are under ``convnet.``; 50 if unclear."""
    if "convnet.layer1.0.conv1.weight" in state and "convnet.layer1.0.conv3.weight" not in state:
        return 34 if "convnet.layer3.5.conv1.weight" in state else 18
    return 50
