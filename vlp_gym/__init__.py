"""Any Gymnasium environment that can render gets a reward from a sentence.

```python
import vlp_gym

env = vlp_gym.make_metaworld("button-press-v3", seed=0)
env = vlp_gym.VLPRewardWrapper(env, instruction="press the button")
```

The public names are imported when they are first used (PEP 562), so that ``import vlp_gym`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp_gym.errors import CheckpointError as CheckpointError
    from vlp_gym.errors import DatasetError as DatasetError
    from vlp_gym.errors import FrameError as FrameError
    from vlp_gym.errors import InstructionError as InstructionError
    from vlp_gym.errors import MissingExtraError as MissingExtraError
    from vlp_gym.errors import QueryError as QueryError
    from vlp_gym.errors import QueryTimeout as QueryTimeout
    from vlp_gym.errors import VLPError as VLPError
    from vlp_gym.integrations.metaworld import make_metaworld as make_metaworld
    from vlp_gym.integrations.sb3 import VLPDictReplayBuffer as VLPDictReplayBuffer
    from vlp_gym.integrations.sb3 import VLPNStepReplayBuffer as VLPNStepReplayBuffer
    from vlp_gym.integrations.sb3 import VLPReplayBuffer as VLPReplayBuffer
    from vlp_gym.integrations.sb3 import VLPRewardCallback as VLPRewardCallback
    from vlp_gym.integrations.sb3 import VLPRolloutBuffer as VLPRolloutBuffer
    from vlp_gym.integrations.sb3_furl import FuRLCallback as FuRLCallback
    from vlp_gym.integrations.sb3_preferences import PreferenceCallback as PreferenceCallback
    from vlp_gym.integrations.sb3_relabel import PreferenceReplayBuffer as PreferenceReplayBuffer
    from vlp_gym.integrations.sb3_vec import VLPVecReward as VLPVecReward
    from vlp_gym.models.base import RewardModel as RewardModel
    from vlp_gym.models.base import Scores as Scores
    from vlp_gym.models.registry import available_models as available_models
    from vlp_gym.models.registry import load_reward_model as load_reward_model
    from vlp_gym.preferences.queries import Queries as Queries
    from vlp_gym.wrappers.capture import capture_frames as capture_frames
    from vlp_gym.wrappers.single import VLPRewardWrapper as VLPRewardWrapper
    from vlp_gym.wrappers.vector import VLPVectorRewardWrapper as VLPVectorRewardWrapper

__version__ = "0.1.0"

_HOME = {
    "VLPRewardWrapper": "vlp_gym.wrappers.single",
    "VLPVectorRewardWrapper": "vlp_gym.wrappers.vector",
    "VLPVecReward": "vlp_gym.integrations.sb3_vec",
    "capture_frames": "vlp_gym.wrappers.capture",
    "VLPReplayBuffer": "vlp_gym.integrations.sb3",
    "VLPDictReplayBuffer": "vlp_gym.integrations.sb3",
    "VLPNStepReplayBuffer": "vlp_gym.integrations.sb3",
    "VLPRolloutBuffer": "vlp_gym.integrations.sb3",
    "VLPRewardCallback": "vlp_gym.integrations.sb3",
    "PreferenceCallback": "vlp_gym.integrations.sb3_preferences",
    "PreferenceReplayBuffer": "vlp_gym.integrations.sb3_relabel",
    "FuRLCallback": "vlp_gym.integrations.sb3_furl",
    "Queries": "vlp_gym.preferences.queries",
    "make_metaworld": "vlp_gym.integrations.metaworld",
    "load_reward_model": "vlp_gym.models.registry",
    "available_models": "vlp_gym.models.registry",
    "RewardModel": "vlp_gym.models.base",
    "Scores": "vlp_gym.models.base",
    "VLPError": "vlp_gym.errors",
    "FrameError": "vlp_gym.errors",
    "InstructionError": "vlp_gym.errors",
    "QueryError": "vlp_gym.errors",
    "QueryTimeout": "vlp_gym.errors",
    "CheckpointError": "vlp_gym.errors",
    "DatasetError": "vlp_gym.errors",
    "MissingExtraError": "vlp_gym.errors",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'vlp_gym' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion in an interactive session."""
    return sorted({*globals(), *__all__})
