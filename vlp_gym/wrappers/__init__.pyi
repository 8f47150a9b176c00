from .batch import VLPBatchRewardWrapper as VLPBatchRewardWrapper
from .capture import capture_frames as capture_frames
from .late import LateRewards as LateRewards
from .single import VLPRewardWrapper as VLPRewardWrapper
from .vector import VLPVectorRewardWrapper as VLPVectorRewardWrapper
