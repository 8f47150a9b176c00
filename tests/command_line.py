"""What the tests of the command line share."""

from __future__ import annotations

from vlp_gym.commands.main import main
from vlp_gym.metaworld.instructions import SIBLINGS

TRAIN_TASKS = ("push-v3", "reach-v3")
SIBLING = SIBLINGS["door-close-v3"]


def run(*arguments):
    """The status of a command."""
    return main([str(argument) for argument in arguments])
