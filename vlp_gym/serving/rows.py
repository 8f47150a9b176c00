"""Tensors that are kept within a number of bytes: tokens on the server, frames on a client."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class Rows:
    """Tensors by name, of at most so many bytes together; the least recently used go first.

    Args:
        limit: bytes.
        least: so many of the newest stay, also where they are over the limit.
    """

    def __init__(self, limit: int, least: int = 0) -> None:
        self.limit, self.least, self.bytes = limit, least, 0
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
        """Keep a tensor that owns its memory; one over the limit is not kept, unless some must be."""
        if name in self._rows or (row.nbytes > self.limit and not self.least):
            return
        self._rows[name] = row
        self.bytes += row.nbytes
        while self.bytes > self.limit and len(self._rows) > self.least:
            self.bytes -= self._rows.popitem(last=False)[1].nbytes
