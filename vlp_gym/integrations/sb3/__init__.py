"""Stable-Baselines3 with rewards that come late, without a subclass of any algorithm.

```python
env = VLPRewardWrapper(env, "press the button", mode="async")
model = SAC("MlpPolicy", env, replay_buffer_class=VLPReplayBuffer)
model.learn(100_000, callback=VLPRewardCallback())
```

An on-policy algorithm (PPO, A2C, TRPO, RecurrentPPO) needs the callback only.
"""

from __future__ import annotations

import lazy_loader

from vlp_gym.errors import missing_extra

try:
    import stable_baselines3.common.buffers
    import stable_baselines3.common.vec_env  # noqa: F401
except ImportError as error:
    raise missing_extra(error, 'Stable-Baselines3 is not installed: pip install "vlp_gym[sb3]"') from error

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
