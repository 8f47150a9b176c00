from .preferences import VLPPreferenceTransform as VLPPreferenceTransform
from .rewards import VLPRewardTransform as VLPRewardTransform
