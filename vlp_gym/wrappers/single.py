"""The wrapper: any Gymnasium environment that can render gets a reward from a sentence."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from types import FunctionType
from typing import Any, NoReturn

import gymnasium as gym
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.settings import Mode
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import add_note
from vlp_gym.frames.check import RenderFn, check_cameras
from vlp_gym.frames.rendering import reset_env
from vlp_gym.models.protocol import History, RewardModel
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import put
from vlp_gym.rewards.options import make_stream
from vlp_gym.rewards.shaping import Reward, Shaping, own_number
from vlp_gym.rewards.stream import Transition, Untaken
from vlp_gym.wrappers.streaming import NO_RELABELLING, RESET_IN_SB3, Streaming

logger = logging.getLogger("vlp_gym")

NOTE = "in the environment under VLPRewardWrapper ({})"


class VLPRewardWrapper(Streaming, gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replaces the environment's reward by what a reward model says of its frames under an instruction.

    The reset frame and the frame after each step are rendered inside the environment's own ``reset`` and ``step``,
    so the terminal frame belongs to the episode that it ends. ``info["vlp"]`` carries ``env_reward`` (the
    environment's own reward), ``score``, ``progress``, ``relevance`` (a logit) and ``success``: always the same keys,
    numbers only, 0 where there is none yet (the environment's own reward at a reset, any before the first score).
    Put a time limit inside this wrapper, not around it. Where a step both terminates and truncates, ``truncated`` is
    False, so that no agent bootstraps from a terminal state. Any error in a step ends the episode; `reset` goes on.

    With ``mode="async"`` a step does not wait for the model, if somebody takes late rewards: has called `poll` or
    `flush` since the reset. It returns a placeholder, the newest reward that has come (0.0 at first), and
    ``info["vlp"]`` names its transition: ``env``, ``episode`` and ``step``, the parts of its ticket. The rewards come
    by `poll` and `flush`: each exactly once, in the order of the steps, and equal to what "sync" pays. ``score``,
    ``progress``, ``relevance`` and ``success`` are those of the newest of them. An error of the model is raised by the
    next step. Where nobody takes late rewards, each step waits and returns its own, as with "sync"; the step after the
    first whole episode raises. `vlp_gym.LateRewards`, in any loop, and `vlp_gym.integrations.sb3` put late rewards
    where they belong.

    Args:
        env: made with ``render_mode="rgb_array"``.
        instruction: what is to be done, in one sentence.
        model: name, folder or hub id for `load_reward_model`, a live `RewardModel` (never copied), or a `QueryEngine`,
            which several wrappers may share and which brings its own window, history, device, truncate and mode.
        reward: "progress" pays the score; "delta" its change since the step before; "potential" gamma * score' - score,
            with 0 for the score' of a terminal state; these three need a model with progress, whose score is progress *
            sigmoid(relevance). "preference" pays the preference score f, of any sign and size; "final" pays it at the
            last step of the episode, and 0 before that, where no score is asked for (without a success_threshold).
        scale: factor on that.
        gamma: the agent's discount, for "potential".
        env_reward_weight: the environment's own reward, times this, is added.
        success_threshold: a score at or over it is a success; None: nothing is.
        success_bonus: added on every step with success.
        terminate_on_success: end the episode at the first success; not with "async".
        every: steps between two scored frames; the last of an episode is scored too. The score is held between, and
            the model's window consists of scored frames. 1 scores every step.
        history: "sliding" or "prefix"; None takes the model's.
        window: frames one score looks at; None takes the model's.
        render_fn: called with the wrapped environment in place of its ``render()``: your own camera. Several functions
            are several views of the same moment, whose scores are averaged.
        device: where the model runs; "auto" takes CUDA if there is one, and leaves a live model where it is.
        mode: "sync": `step` returns the exact reward; "async": it comes later, as described above.
        truncate: cut an instruction that is over the model's token limit, instead of raising.
        flat_info: put the numbers into ``info`` itself, as ``"vlp/score"`` etc., for code that reads no dictionary.
        untaken: what happens with "async" after a whole episode, if nobody has ever taken late rewards, so that each
            step has waited for its own: "warn" says once what to do, "raise" raises that, "wait" says nothing.

    Raises:
        ValueError: for an invalid argument, an environment that does not render arrays, or a model without progress
            where the reward needs it.
        InstructionError: for an instruction that is blank, or over the model's limit.

    Example:
        >>> from vlp_gym.testing import PaintedEnv, PaintedModel
        >>> env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel())
        >>> observation, info = env.reset(seed=0)
        >>> sorted(info["vlp"])
        ['env_reward', 'progress', 'relevance', 'score', 'success']
        >>> env.close()
    """

    _example = ", for example in the function given to SubprocVecEnv"

    def __init__(
        self,
        env: gym.Env[Any, Any],
        instruction: str,
        model: str | os.PathLike[str] | RewardModel | QueryEngine = "vlp-compact",
        *,
        reward: Reward | Shaping = "progress",
        scale: float = 1.0,
        gamma: float = 0.99,
        env_reward_weight: float = 0.0,
        success_threshold: float | None = None,
        success_bonus: float = 0.0,
        terminate_on_success: bool = False,
        every: int = 1,
        history: History | None = None,
        window: int | None = None,
        render_fn: RenderFn | Sequence[RenderFn] | None = None,
        device: str | torch.device = "auto",
        mode: Mode = "sync",
        truncate: bool = False,
        flat_info: bool = False,
        untaken: Untaken = "warn",
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "env", "__class__")}
        recorded = {name: record(value) for name, value in options.items()}
        gym.utils.RecordConstructorArgs.__init__(self, **recorded)
        self._cameras = check_cameras(env, options.pop("render_fn"))
        gym.Wrapper.__init__(self, env)
        self._stream = make_stream([options.pop("instruction")], **options)
        self._running = self._closed = False

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """As Gymnasium's wrappers have it; what a step returns varies where rewards come late."""
        spec = super().spec
        if spec is not None and self._stream.late:
            spec.nondeterministic = True
        return spec

    @property
    def instruction(self) -> str:
        """The instruction of the running episode; change it with `set_instruction`."""
        return self._stream.instruction(0)

    @property
    def ticket(self) -> Ticket:
        """Names the newest transition: env, episode (0 is the first after construction), step (0 is the reset)."""
        return self._stream.ticket(0)

    def set_instruction(self, instruction: str) -> None:
        """Change the instruction from the next `reset` on: one episode is judged by one sentence.

        Raises:
            InstructionError: for an instruction that is blank, or over the model's limit.
        """
        self._stream.set_instruction(0, instruction)

    def poll(self, timeout_s: float = 0.0, *, raises: bool = True) -> list[Delivery]:
        """Take the late rewards that are there, oldest first.

        Args:
            timeout_s: how long to wait for the first one.
            raises: False leaves what the model has raised to the next step, or to the next call.

        Raises:
            QueryError, TypeError: what the model raised for an earlier step.
        """
        return self._stream.poll(timeout_s, raises=raises)[0]

    def flush(self, timeout_s: float | None = None) -> list[Delivery]:
        """Wait until every reward is there, and take them as `poll` does.

        Raises:
            QueryTimeout: if that takes longer than `timeout_s`; None waits 60 s.
        """
        return self._stream.flush(timeout_s)[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, forget the frames of the episode before, and score the first frame."""
        if self._closed:  # Stable-Baselines3's check_env does that
            self._stream.reopen()
        self._running = self._closed = False
        self._stream.receipt.restart()
        ticket = self._stream.begin(0)
        self._stream.env_is_stepping(True)
        try:
            observation, info = reset_env(self.env, seed, options)
            views = self._render()
        except Exception as error:
            add_note(error, NOTE.format(ticket))
            raise
        self._stream.env_is_stepping(False)
        logger.debug("%s: instruction %s", ticket, self.instruction)
        self._stream.observe([Transition(0, views)])
        self._running = True
        return observation, put(info, self._stream.info(0, 0.0), flat=self._stream.flat)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; the reward, a Python float, is the sentence's, or the placeholder of a late one."""
        if self._closed:
            raise ClosedEnvironmentError("step was called after close")
        self._stream.settle()
        if not self._running or self._stream.broken(0):
            raise ResetNeeded(
                f"call reset before step: the episode has ended or has not begun ({self.ticket}); {RESET_IN_SB3}"
            )
        self._running = False  # until the step is through: after an error the episode cannot go on
        ticket = self._stream.advance(0)
        self._stream.env_is_stepping(True)
        try:
            observation, own, terminated, truncated, info = self.env.step(action)
            views = self._render() if self._stream.due(0, over=bool(terminated or truncated)) else None
        except Exception as error:
            add_note(error, NOTE.format(ticket))
            raise
        self._stream.env_is_stepping(False)
        env_reward = own_number(own)
        self._stream.observe([Transition(0, views, bool(terminated), bool(truncated), env_reward)])
        if not self._stream.late:
            (delivered,) = self._stream.collect()
            terminated = terminated or (self._stream.shaping.terminate_on_success and delivered[-1].success)
        terminated, truncated = bool(terminated), bool(truncated and not terminated)
        self._running = not (terminated or truncated)
        info = put({**self._stream.success(0), **info}, self._stream.info(0, env_reward), flat=self._stream.flat)
        return observation, self._stream.placeholder(0), terminated, truncated, info

    def compute_reward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: the environment's own ``compute_reward``, which hindsight relabelling calls, is not the sentence's.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_RELABELLING)

    def close(self) -> None:
        """Close the environment; a second call does nothing. A live model stays usable."""
        if not self._closed:
            self._closed, self._running = True, False
            self._stream.close()
            super().close()

    def __deepcopy__(self, memo: dict[int, Any]) -> VLPRewardWrapper:
        """A copy of the environment in its present state, with the same model."""
        clone = object.__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def _render(self) -> list[object]:
        """One frame for each camera; all but the last are copied: the next camera may draw into the same buffer."""
        *others, last = self._cameras
        return [*(copy.copy(camera(self.env)) for camera in others), last(self.env)]


def record(value: Any) -> Any:
    """An argument for the spec, with a stand-in for a live object, which each copy of the spec would deep-copy.

    A spec with the stand-in cannot be made again; without it, it would be made with another model or camera.
    """
    if value is None or isinstance(value, (str, bool, int, float, FunctionType, Shaping)):
        return value
    if isinstance(value, (list, tuple)):
        return [record(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else f"<live {type(value).__name__}>"
