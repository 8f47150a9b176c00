"""The common part of the vector wrappers: frames of the sub-environments in, rewards out.

Each sub-environment writes into the shared memory whether a call was a step, a reset, or a step and then a reset. So
nothing is guessed from the mode of autoreset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import VLPError
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.options import Shorthand
from vlp_gym.rewards.shaping import Reward, Shaping, own_number
from vlp_gym.rewards.stream import Transition
from vlp_gym.wrappers.capture import BEGUN, RESET_FRAME, STEP_FRAME, STEPPED, FrameBlock, frame_file
from vlp_gym.wrappers.many import ManyRewards
from vlp_gym.wrappers.workers import Workers

Values: TypeAlias = "Sequence[Any] | NDArray[Any]"

logger = logging.getLogger("vlp_gym")


class Settled(NamedTuple):
    """The result of a step."""

    rewards: NDArray[np.float64]
    """``[num_envs]``, 0.0 where there was a reset in place of a step."""
    infos: list[dict[str, Any]]
    """``info["vlp"]`` of each environment, for the transition (or the reset in its place)."""
    successes: list[dict[str, bool]]
    """``is_success`` of each transition, where it is known."""
    first: dict[int, dict[str, Any]]
    """``info["vlp"]`` of the reset frame, of those environments that were reset after their step."""


class CapturedRewards(ManyRewards):
    """The part of a vector wrapper that does not depend on the kind of vector environment."""

    _call: Callable[..., Sequence[Any]]
    """Calls a method of every sub-environment."""

    def _listen(
        self,
        venv: Any,
        call: Callable[..., Sequence[Any]],
        instruction: str | Sequence[str],
        model: str | os.PathLike[str] | RewardModel | QueryEngine,
        reward: Reward | Shaping,
        options: Shorthand,
    ) -> None:
        """Make the stream and watch the workers.

        Args:
            venv: the vector environment itself, no wrapper around it.
            call: calls a method of every sub-environment.
            instruction: one for all, or one for each.
            model: as `VLPRewardWrapper` has it.
            reward: the same.
            options: the same.
        """
        self._workers = Workers(venv)
        with self._workers.guard(), self._workers.watch():
            places = list(call("detach_frames"))
        if places != list(range(venv.num_envs)):
            raise ValueError(
                f"expected sub-environments from one call of capture_frames, in its order, got the places {places}"
            )
        self._make_stream(venv.num_envs, instruction, model, reward, options)
        self._call = call
        self._block: FrameBlock | None = None

    @contextmanager
    def _calling_envs(self, *, on: bool = False) -> Iterator[NDArray[np.bool_]]:
        """Around each call of the vector environment (`on`: its second half); gives who was running, ``[num_envs]``."""
        if self._block is not None and not on:
            self._block.events[:] = 0
        running, self._running = self._running, np.zeros_like(self._running)  # after an error, no episode can go on
        self._stream.env_is_stepping(True)
        try:
            with self._workers.guard():
                yield running
        finally:
            self._stream.env_is_stepping(False)
            if self._workers.stopped:
                self._shut()

    def _shut(self) -> None:
        self._closed = True
        self._block = None
        self._stream.close()

    def _end(self, close: Callable[[], None]) -> None:
        """Close the wrapper, and the vector environment by `close`; a second call does nothing."""
        if self._closed:
            return
        self._shut()
        if self._workers.dead():
            self._workers.stop()  # the others wait for a message that the vector environment can no longer send
        else:
            close()

    def _begin(self, running: NDArray[np.bool_]) -> dict[int, dict[str, Any]]:
        """After a reset: begin the episodes of those that were reset; returns their ``info["vlp"]``.

        Those that were running before, ``[num_envs]``, and were not reset go on.
        """
        if self._block is None:
            self._attach()
        assert self._block is not None
        self._stream.receipt.restart()
        begun = np.flatnonzero(self._block.events[:, BEGUN]).tolist()
        infos = self._begin_those(begun)
        for index in begun:
            if self._block.events[index, STEPPED]:
                raise _out_of_step(self._stream.ticket(index), "a step in the reset")
        running[begun] = True
        self._running = running
        return infos

    def _settle(self, own: Values, terminated: Values, truncated: Values) -> Settled:
        """After a step: ask for the rewards of the transitions, and begin the episodes that a reset has begun.

        Args:
            own: the environments' own rewards, ``[num_envs]``.
            terminated, truncated: ``[num_envs]``.
        """
        assert self._block is not None
        stream, num_envs = self._stream, len(self._stream)
        stepped = [bool(number) or not begun for number, _, begun in self._block.events.tolist()]
        own_rewards = [own_number(reward) for reward in own]
        asked = [
            self._transition(index, bool(terminated[index]), bool(truncated[index]), own_rewards[index])
            if stepped[index]
            else self._first(index)
            for index in range(num_envs)
        ]
        stream.observe(asked)
        rewards, infos, successes = np.zeros(num_envs), [], []
        for index in range(num_envs):
            infos.append(stream.info(index, own_rewards[index] if stepped[index] else 0.0))
            successes.append(stream.success(index))
            if stepped[index]:
                rewards[index] = stream.placeholder(index)
        again = [index for index in range(num_envs) if stepped[index] and self._block.events[index, BEGUN]]
        first = self._begin_those(again)
        if not stream.late:
            stream.collect()
        return Settled(rewards, infos, successes, first)

    def _begin_those(self, indices: Sequence[int]) -> dict[int, dict[str, Any]]:
        stream = self._stream
        if indices:
            stream.observe([self._first(index) for index in indices])
        return {index: stream.info(index, 0.0) for index in indices}

    def _first(self, index: int) -> Transition:
        """Begin an episode with the frame of the reset."""
        ticket = self._stream.begin(index)
        logger.debug("%s: instruction %s", ticket, self._stream.instruction(index))
        return Transition(index, self._views(index, RESET_FRAME))

    def _transition(self, index: int, terminated: bool, truncated: bool, env_reward: float | None) -> Transition:
        """One step, with its frame if it is due."""
        assert self._block is not None
        ticket = self._stream.advance(index)
        number, rendered, _ = self._block.events[index]
        due = self._stream.due(index, over=terminated or truncated)
        if number != ticket.step:
            raise _out_of_step(ticket, f"its step {number}")
        if due and not rendered:  # `over` is not what the sub-environment saw
            raise _out_of_step(ticket, "no frame of the end of the episode")
        return Transition(index, self._views(index, STEP_FRAME) if due else None, terminated, truncated, env_reward)

    def _views(self, index: int, slot: int) -> list[NDArray[np.uint8]]:
        assert self._block is not None
        return list(self._block.frames[index, slot])

    def _attach(self) -> None:
        """Share memory with the sub-environments: only now is it known how large their frames are."""
        with self._workers.watch():
            views = next(shape for shape in self._call("frame_shape") if shape is not None)
            shape = (len(self._stream), *views)
            with frame_file(shape) as path:
                block = FrameBlock(path, shape)
                self._call("attach_frames", path, shape, self._stream.every)
        self._block = block


def _out_of_step(ticket: Ticket, got: str) -> VLPError:
    return VLPError(
        f"expected one step or reset of the environment for one of the vector environment, got {got} ({ticket}); "
        "call capture_frames last, around all other wrappers of the sub-environments"
    )
