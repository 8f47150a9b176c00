"""Small modules that can be saved, and what their weights are as bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlp_gym.models.checkpoint import CheckpointMixin


class Tiny(nn.Module, CheckpointMixin):
    """Two layers, dropout and an integer buffer."""

    model_type = "tiny"

    def __init__(self, width: int = 4, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.config = {"width": width, "sizes": list(sizes)}
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("count", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.tanh(self.first(x))))


class Partial(Tiny):
    """Stores its second layer alone, as a model over a frozen backbone does."""

    model_type = "partial"

    def checkpoint_state(self) -> dict[str, Tensor]:
        return self.second.state_dict()

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        self.second.load_state_dict(state)


class Renamed(Partial):
    load_checkpoint_state = None


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
