"""torchvision's ResNets, the encoders of `vip` and `r3m`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlp_gym.errors import import_extra


def make_resnet(layers: int, **options: Any) -> Any:
    """Build torchvision's ResNet of 18, 34 or 50 layers with random weights.

    Raises:
        ValueError: another number of layers.
        MissingExtraError: torchvision is not installed.
    """
    if layers not in (18, 34, 50):
        raise ValueError(f"resnet: expected 18, 34 or 50 layers, got {layers}")
    torchvision = import_extra("torchvision", "a ResNet needs torchvision", "clip")
    return getattr(torchvision.models, f"resnet{layers}")(weights=None, **options)


def resnet_layers(state: dict[str, Tensor]) -> int:
    """Number of layers of the ResNet whose tensors are under ``convnet.``; 50 if unclear."""
    if "convnet.layer1.0.conv1.weight" in state and "convnet.layer1.0.conv3.weight" not in state:
        return 34 if "convnet.layer3.5.conv1.weight" in state else 18
    return 50
