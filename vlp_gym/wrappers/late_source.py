"""The reward wrappers of any environment, single or vector: their late rewards, and the tickets in its infos."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import FLAT, KEY, ours_in, ticket_in
from vlp_gym.wrappers.many import ManyRewards
from vlp_gym.wrappers.outside import MEDDLING, inside, may_meddle, vector_may_meddle
from vlp_gym.wrappers.single import VLPRewardWrapper

logger = logging.getLogger("vlp_gym")

NOT_WRAPPED = (
    "expected an environment with VLPRewardWrapper around it, or a vector environment with VLPVectorRewardWrapper "
    "or VLPBatchRewardWrapper around it, or with VLPRewardWrapper around each environment in it; found none in {}"
)
NO_NUMBERS = (
    'the infos have none of the reward wrapper\'s numbers (info["vlp"]): give step the infos that the step '
    "of the environment has returned"
)


class LateSource:
    """Brings the late rewards of all environments of a loop.

    Args:
        envs: wrapped as `LateRewards` has it.

    Raises:
        TypeError: if it is no environment.
        ValueError: if there is no reward wrapper, or not around each.
    """

    def __init__(self, envs: Any) -> None:
        self.num_envs: int | None = None
        """How many environments a vector has; None for a single environment."""
        self._vector: ManyRewards | None = None
        self._local: list[VLPRewardWrapper] = []
        self._remote: Any = None
        """Calls a method in every worker process."""
        name = self._find(envs)
        self.late = any(self._each("late"))
        """Whether rewards may come late: the mode is "async" somewhere, and nothing outside meddles with steps."""
        if self.late:
            self._each("take_late_rewards", False)  # somebody is there: each step waits until rewards are polled
        if self.late and name:
            logger.warning(MEDDLING, name)
            self.late = False

    def come_late(self) -> None:
        """Let rewards come late until a reset in mid-episode, and errors of the model by `poll` only.

        For whoever polls seldom, and calls this after each reset; others poll after each step, and need it not.
        """
        self._each("raise_in_poll")
        self._each("take_late_rewards")

    def poll(self, timeout_s: float = 0.0, *, raises: bool = True) -> Iterator[tuple[int, list[Delivery]]]:
        """Take the rewards that have come, one environment at a time: an error in one loses no reward of another.

        Args:
            timeout_s: longest wait for each that has rewards pending.
            raises: what the model has raised; else the next step of the environment does.
        """
        if self._vector is not None:
            yield from enumerate(self._vector.poll(timeout_s, raises=raises))
        elif self._remote is not None:
            yield from enumerate(self._remote("poll", timeout_s, raises=raises))
        else:
            for index, wrapper in enumerate(self._local):
                yield index, wrapper.poll(timeout_s, raises=raises)

    def idle(self) -> bool:
        """Whether nothing is pending: a reward that the next `poll` does not bring will not come."""
        return all(stats["pending"] == 0 for stats in self._each("stats"))

    def tickets(self, infos: Any) -> list[Ticket | None]:
        """The tickets of a step's transitions, one for each environment.

        Args:
            infos: what the environment's ``step`` returned: a dictionary, or a list of one for each environment.

        Returns:
            None where the reward came with the step, and where there was a reset in place of a step.

        Raises:
            ValueError: if they have none of our numbers.
        """
        tickets = map(ticket_in, self.transitions(infos))
        return [ticket if ticket is not None and ticket.step > 0 else None for ticket in tickets]

    def transitions(self, infos: Any) -> list[dict[str, Any] | None]:
        """Our numbers of a step's transitions: ``env_reward``, and those of the ticket where rewards come late.

        Args:
            infos: as `tickets` has it.

        Returns:
            One for each environment; None where there was a reset in place of a step.

        Raises:
            ValueError: if they have none of our numbers.
        """
        if self.num_envs is None:
            each = [_ours_at(infos, None)]
        elif isinstance(infos, Mapping):
            each = [self._transition(infos, index) for index in range(self.num_envs)]
        else:
            each = [self._transition(info, None) for info in infos]
        if len(each) != (self.num_envs or 1) or all(ours is None for ours in each):
            raise ValueError(NO_NUMBERS)
        return each

    def engines(self) -> list[QueryEngine]:
        """What the wrappers ask, each once.

        Raises:
            ValueError: if they live in other processes.
        """
        if self._remote is not None:
            raise ValueError(
                "the environments look at their frames in other processes, where their scores cannot be kept; use "
                "capture_frames and VLPVectorRewardWrapper around the vector environment"
            )
        return list(dict.fromkeys(self._each("engine")))

    def _transition(self, infos: Mapping[str, Any], index: int | None) -> dict[str, Any] | None:
        """Our numbers of a transition: with ``SAME_STEP``, Gymnasium puts those of the last one into `final_info`."""
        final = infos.get("final_info")
        if self._vector is None and final is not None and (index is None or infos["_final_info"][index]):
            return _ours_at(final, index)
        return _ours_at(infos, index)

    def _find(self, envs: Any) -> str:
        """Find the reward wrappers; returns the name of a wrapper outside them that may meddle, or ""."""
        outside: list[str] = []
        venv = envs
        if isinstance(envs, gym.Env):
            self._local = [_find_single(envs, outside)]
            return next(iter(outside), "")
        while isinstance(venv, gym.vector.VectorWrapper) and not isinstance(venv, ManyRewards):
            if vector_may_meddle(venv):
                outside.append(type(venv).__name__)
            venv = venv.env
        if not isinstance(venv, (gym.vector.VectorEnv, ManyRewards)):
            raise TypeError(f"expected a Gymnasium environment or vector environment, got {type(envs).__name__}")
        self.num_envs = venv.num_envs  # type: ignore[union-attr]  # Stable-Baselines3's have it too
        if isinstance(venv, ManyRewards):
            self._vector = venv
        elif isinstance(venv, gym.vector.SyncVectorEnv):
            self._local = [_find_single(env, outside) for env in venv.envs]
        else:
            self._remote = getattr(venv, "call", None)
            if self._remote is None or not all(self._remote("has_wrapper_attr", "take_late_rewards")):
                raise ValueError(NOT_WRAPPED.format(envs))
        return next(iter(outside), "")

    def _each(self, name: str, *args: Any) -> list[Any]:
        """Call a method, or read a property, of every reward wrapper."""
        if self._remote is not None:
            return list(self._remote(name, *args))
        found = [getattr(each, name) for each in ([self._vector] if self._vector is not None else self._local)]
        return [each(*args) if callable(each) else each for each in found]


def _find_single(env: Any, outside: list[str]) -> VLPRewardWrapper:
    """The reward wrapper around one environment; adds the names of wrappers outside it that may meddle."""
    for each in (env, *inside(env)):
        if isinstance(each, VLPRewardWrapper):
            return each
        if isinstance(each, gym.Wrapper) and may_meddle(each):
            outside.append(type(each).__name__)
    raise ValueError(NOT_WRAPPED.format(env))


def _ours_at(infos: Mapping[str, Any], index: int | None) -> dict[str, Any] | None:
    """Our numbers of one environment; `index` is its place in the arrays of a vector's infos."""
    ours = ours_in(infos)
    if ours is None or index is None:
        return ours
    masks: Sequence[bool] | None = infos.get(f"_{FLAT}step") if KEY not in infos else ours.get("_step")
    if masks is None:  # the rewards came with the step
        return {"env_reward": ours["env_reward"][index]}
    if not masks[index]:
        return None
    return {name: ours[name][index] for name in ("env_reward", "env", "episode", "step")}
