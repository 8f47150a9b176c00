"""What the server remembers: tokens of frames and sentences, the least recently used of which go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class Rows:
    """Tensors by name, of at most so many bytes together.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._rows

    def get(self, name: Hashable) -> Tensor | None:
        """The tensor of this name, which is now the most recently used; None if it is gone."""
        row = self._rows.get(name)
        if row is not None:
            self._rows.move_to_end(name)
        return row

    def put(self, name: Hashable, row: Tensor) -> None:
        """Keep a tensor that owns its memory; one over the limit is not kept."""
        size = row.nbytes
        if name in self._rows or size > self.limit:
            return
        self._rows[name] = row
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self._rows.popitem(last=False)[1].nbytes
