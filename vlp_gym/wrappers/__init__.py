"""Wrappers that replace an environment's reward by a reward from a sentence.

The names are imported when they are first used: a worker process needs `capture_frames` only, and no torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
