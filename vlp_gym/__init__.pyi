from .errors import CheckpointError as CheckpointError
from .errors import DatasetError as DatasetError
from .errors import FrameError as FrameError
from .errors import InstructionError as InstructionError
from .errors import MissingExtraError as MissingExtraError
from .errors import QueryError as QueryError
from .errors import QueryTimeout as QueryTimeout
from .errors import VLPError as VLPError
from .frames.rendering import FastRender as FastRender
from .integrations.sb3.buffers import VLPDictReplayBuffer as VLPDictReplayBuffer
from .integrations.sb3.buffers import VLPNStepReplayBuffer as VLPNStepReplayBuffer
from .integrations.sb3.buffers import VLPReplayBuffer as VLPReplayBuffer
from .integrations.sb3.buffers import VLPRolloutBuffer as VLPRolloutBuffer
from .integrations.sb3.callback import VLPRewardCallback as VLPRewardCallback
from .integrations.sb3.furl import FuRLCallback as FuRLCallback
from .integrations.sb3.preferences import PreferenceCallback as PreferenceCallback
from .integrations.sb3.relabel import PreferenceReplayBuffer as PreferenceReplayBuffer
from .integrations.sb3.vec import VLPVecReward as VLPVecReward
from .metaworld.env import make_metaworld as make_metaworld
from .models.protocol import RewardModel as RewardModel
from .models.protocol import Scores as Scores
from .models.registry import available_models as available_models
from .models.registry import load_reward_model as load_reward_model
from .preferences.schedule import Queries as Queries
from .rewards.shaping import Shaping as Shaping
from .wrappers.batch import VLPBatchRewardWrapper as VLPBatchRewardWrapper
from .wrappers.capture import capture_frames as capture_frames
from .wrappers.late import LateRewards as LateRewards
from .wrappers.single import VLPRewardWrapper as VLPRewardWrapper
from .wrappers.vector import VLPVectorRewardWrapper as VLPVectorRewardWrapper

__version__: str
__all__: list[str]
