"""The cache of frame tokens: every frame of an episode is encoded once for all windows."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, cat, empty_like, from_numpy


class TokenCache:
    """Frame tokens of one running episode, float ``[K, D]`` per frame, indexed from 0.

    Args:
        limit: number of newest frames kept; None keeps the whole episode (the block doubles as it fills).
    """

    def __init__(self, limit: int | None) -> None:
        self.total = 0
        self.first: Tensor | None = None
        """Tokens of the first frame, for a `ContextualModel`; else None."""
        self._limit = limit
        self._block: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenCache:
        clone = copy.copy(self)
        clone._block = None if self._block is None else self._block.clone()
        return clone

    def append(self, tokens: Tensor) -> None:
        """Add the tokens of the next frame, float ``[K, D]``."""
        if self._block is None:
            self._block = tokens.new_empty((self._limit or 64, *tokens.shape))
        elif self._limit is None and self.total == len(self._block):
            self._block = cat([self._block, empty_like(self._block)])
        self._block[self.total % len(self._block)] = tokens
        self.total += 1

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Copy the tokens with these indices, int64 ``[T]``, as float ``[T, K, D]``."""
        if self._block is None:
            raise IndexError("no frame was encoded yet")
        return self._block[from_numpy(indices % len(self._block)).to(self._block.device)]
