"""The frames that a client keeps, to send them again to a server that has forgotten them."""

from __future__ import annotations

import threading

from torch import Tensor

from vlp_gym.serving.rows import Rows


class Frames:
    """Frames by digest, of at most so many bytes together, for several threads; the newest one stays in any case.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._rows, self._lock = Rows(limit, least=1), threading.Lock()

    def put(self, digest: bytes, frame: Tensor) -> None:
        """Keep a copy of a frame, uint8 ``[H, W, 3]``."""
        with self._lock:
            if self._rows.get(digest) is None:
                self._rows.put(digest, frame.clone())

    def get(self, digest: bytes) -> Tensor | None:
        """The frame, or None if it is gone."""
        with self._lock:
            return self._rows.get(digest)
