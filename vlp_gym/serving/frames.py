"""The frames that a client keeps, to send them again to a server that has forgotten them."""

from __future__ import annotations

import threading
from collections import OrderedDict

from torch import Tensor


class Frames:
    """Frames by digest, of at most so many bytes together; the least recently used go first.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._frames: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, digest: bytes, frame: Tensor) -> None:
        """Keep a copy of a frame, uint8 ``[H, W, 3]``."""
        with self._lock:
            if digest in self._frames:
                self._frames.move_to_end(digest)
                return
            self._frames[digest] = frame.clone()
            self.bytes += frame.nbytes
            while self.bytes > self.limit and len(self._frames) > 1:
                self.bytes -= self._frames.popitem(last=False)[1].nbytes

    def get(self, digest: bytes) -> Tensor | None:
        """The frame, or None if it is gone."""
        with self._lock:
            frame = self._frames.get(digest)
            if frame is not None:
                self._frames.move_to_end(digest)
            return frame
