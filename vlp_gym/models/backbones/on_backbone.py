"""What the models over a backbone share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class OnBackbone(nn.Module):
    """A model whose ``backbone`` encodes frames, and sentences unless the model does so itself."""

    backbone: Any

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) in pixels after the backbone's resize."""
        return self.backbone.frame_size

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as the backbone's text tokens, float ``[B, L, D_l]``; padding rows are exactly zero."""
        return self.backbone.encode_text(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, as the backbone's tokens, float ``[N, K, D_v]``."""
        return self.backbone.encode_frames(frames)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The stored tensors: all but the weights of a backbone that can be restored by its name."""
        return {
            key: value.detach()
            for key, value in self.state_dict().items()
            if not (self.backbone.restorable and key.startswith("backbone."))
        }
