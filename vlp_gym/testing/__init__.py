"""Checks for your own reward models and wrapped environments, an exact oracle, and deliberately faulty objects."""

from __future__ import annotations

from vlp_gym.testing.checks import check_reward_model as check_reward_model
from vlp_gym.testing.checks import check_wrapper as check_wrapper
from vlp_gym.testing.faulty import FRAME_FAULTS as FRAME_FAULTS
from vlp_gym.testing.faulty import MODEL_FAULTS as MODEL_FAULTS
from vlp_gym.testing.faulty import FaultyEnv as FaultyEnv
from vlp_gym.testing.faulty import FaultyModel as FaultyModel
from vlp_gym.testing.painted import PAINT_BITS as PAINT_BITS
from vlp_gym.testing.painted import PaintedEnv as PaintedEnv
from vlp_gym.testing.painted import PaintedModel as PaintedModel
from vlp_gym.testing.painted import painted_value as painted_value
