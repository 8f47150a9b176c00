"""Policies learned offline, from rollouts and preference labels, without an environment.

The names are imported when they are first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
