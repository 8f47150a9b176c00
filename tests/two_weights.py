"""A model of two weights for the tests of the training loop, and a batch of nothing."""

from __future__ import annotations

import torch


class TwoWeights(torch.nn.Module):
    """Two weights, and a submodule that says whether it trains."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
        self.inner = torch.nn.Dropout(0.5)


class Batch:
    def to(self, device):
        return self
