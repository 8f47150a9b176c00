"""Preferences: segments of experience, labels that say which of two is better, and the reward learned from them.

`PreferenceLearner` holds the sessions of any training loop. The names are imported when they are first used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
