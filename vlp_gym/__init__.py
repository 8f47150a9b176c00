"""Any Gymnasium environment that can render gets a reward from a sentence.

```python
import vlp_gym

env = vlp_gym.make_metaworld("button-press-v3", seed=0)
env = vlp_gym.VLPRewardWrapper(env, instruction="press the button")
```

The public names are listed in ``__init__.pyi`` and imported when they are first used, so that ``import vlp_gym`` costs
next to nothing.
"""

from __future__ import annotations

import lazy_loader

from vlp_gym.frames.process import load_triton, survive_fork

load_triton()
survive_fork()

__version__ = "0.1.0"

__getattr__, _dir, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    """The public names, for completion in an interactive session."""
    return sorted({*globals(), *_dir()})
