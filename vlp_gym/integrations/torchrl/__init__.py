"""TorchRL: rewards that come late, and rewards that are learned from preferences."""

from __future__ import annotations

import lazy_loader

from vlp_gym.errors import missing_extra

try:
    import torchrl.envs  # noqa: F401
except ImportError as error:
    raise missing_extra(error, 'TorchRL is not installed: pip install "vlp_gym[torchrl]"') from error

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
