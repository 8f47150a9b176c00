"""What all wrappers of vector environments have in common: one stream, an instruction and a ticket for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.options import Shorthand, make_stream
from vlp_gym.rewards.shaping import Reward, Shaping
from vlp_gym.wrappers.streaming import RESET_IN_SB3, Streaming


class ManyRewards(Streaming):
    """Base of these wrappers."""

    def _make_stream(
        self,
        num_envs: int,
        instruction: str | Sequence[str],
        model: str | os.PathLike[str] | RewardModel | QueryEngine,
        reward: Reward | Shaping,
        options: Shorthand,
    ) -> None:
        """Make the stream; no episode is running yet.

        Args:
            num_envs: how many environments there are.
            instruction: one for all, or one for each.
            model: as `VLPRewardWrapper` has it.
            reward: the same.
            options: the same.
        """
        one = not isinstance(instruction, (list, tuple))
        sentences: list[Any] = [instruction] * num_envs if one else list(instruction)
        if len(sentences) != num_envs:
            raise ValueError(f"expected one instruction, or one for each of {num_envs} envs, got {len(sentences)}")
        if options.get("terminate_on_success") or (isinstance(reward, Shaping) and reward.terminate_on_success):
            raise ValueError("terminate_on_success needs an environment that is reset by us; use VLPRewardWrapper")
        self._stream = make_stream(sentences, model, reward, **options)
        self._running = np.zeros(num_envs, np.bool_)
        self._closed = False

    @property
    def instructions(self) -> list[str]:
        """The instruction of each environment's running episode; change it with `set_instruction`."""
        return [self._stream.instruction(index) for index in range(len(self._stream))]

    @property
    def tickets(self) -> list[Ticket]:
        """Name the newest transition of each environment."""
        return [self._stream.ticket(index) for index in range(len(self._stream))]

    def set_instruction(self, instruction: str, index: int | None = None) -> None:
        """Change the instruction of one environment, or of all (None): as `VLPRewardWrapper.set_instruction`."""
        for each in range(len(self._stream)) if index is None else [index]:
            self._stream.set_instruction(each, instruction)

    def poll(self, timeout_s: float = 0.0, *, raises: bool = True) -> list[list[Delivery]]:
        """For each environment what `VLPRewardWrapper.poll` returns."""
        return self._stream.poll(timeout_s, raises=raises)

    def flush(self, timeout_s: float | None = None) -> list[list[Delivery]]:
        """For each environment what `VLPRewardWrapper.flush` returns."""
        return self._stream.flush(timeout_s)

    def _check_ready(self) -> None:
        """Before a step."""
        if self._closed:
            raise ClosedEnvironmentError("step was called after close")
        self._stream.settle()
        over = [index for index, running in enumerate(self._running) if not running or self._stream.broken(index)]
        if over:
            raise ResetNeeded(
                f"call reset before step: the episodes of the envs {over} have ended or have not begun; {RESET_IN_SB3}"
            )
