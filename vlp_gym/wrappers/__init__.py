"""Wrappers that replace an environment's reward by a reward from a sentence."""

from vlp_gym.wrappers.single import VLPRewardWrapper

__all__ = ["VLPRewardWrapper"]
