"""The wrapper: any Gymnasium environment that can render gets a reward from a sentence."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NoReturn, SupportsIndex

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from numpy.typing import NDArray

from vlp_gym.engine import QueryEngine, Ticket, check_mode
from vlp_gym.frames import FrameRing, validate_frame
from vlp_gym.models.base import History, RewardModel
from vlp_gym.shaping import Reward, Shaping, score_of
from vlp_gym.text import normalize_instruction

logger = logging.getLogger("vlp_gym")


class VLPRewardWrapper(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replaces the environment's reward by what a reward model says of its frames under an instruction.

    The reset frame and the frame after each step are rendered inside the environment's own ``reset`` and ``step``,
    so the terminal frame belongs to the episode that it ends. ``info["vlp"]`` carries ``env_reward`` (the
    environment's own reward, None at a reset), ``score``, ``progress``, ``relevance`` (a logit) and ``success``.
    Put a time limit inside this wrapper, not around it. Where a step both terminates and truncates, ``truncated`` is
    False, so that no agent bootstraps from a terminal state. Any error in a step ends the episode; `reset` goes on.

    Args:
        env: made with ``render_mode="rgb_array"``.
        instruction: what is to be done, in one sentence.
        model: name, folder or hub id for `load_reward_model`, or a live `RewardModel` (never copied).
        reward: "progress" pays the score; "delta" its change since the step before; "potential" gamma * score' - score,
            with 0 for the score' of a terminal state; these three need a model with progress, whose score is progress *
            sigmoid(relevance). "preference" pays the preference score f, of any sign and size.
        scale: factor on that.
        gamma: the agent's discount, for "potential".
        env_reward_weight: the environment's own reward, times this, is added.
        success_threshold: a score at or over it is a success; None: nothing is.
        success_bonus: added on every step with success.
        terminate_on_success: end the episode at the first success.
        every: a frame is rendered and scored every so many steps, and at the end of the episode; the score is held
            between, and the model's window is one of these frames. 1 is every step.
        history: "sliding" or "prefix"; None takes the model's.
        window: frames one score looks at; None takes the model's.
        render_fn: called with the wrapped environment in place of its ``render()``: your own camera.
        device: of the model; "auto" is CUDA if there is one, for a live model where it is.
        mode: only "sync": `step` returns the exact reward.
        truncate: cut an instruction that is over the model's token limit, instead of raising.

    Raises:
        ValueError: for an argument that makes no sense, an environment that does not render arrays, or a model
            without progress where the reward needs it.
        InstructionError: for an instruction that is blank, or over the model's limit.

    Example:
        >>> from vlp_gym.testing import PaintedEnv, PaintedModel
        >>> env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel())
        >>> observation, info = env.reset(seed=0)
        >>> sorted(info["vlp"])
        ['env_reward', 'progress', 'relevance', 'score', 'success']
        >>> env.close()
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        instruction: str,
        model: str | os.PathLike[str] | RewardModel = "vlp-compact",
        *,
        reward: Reward = "progress",
        scale: float = 1.0,
        gamma: float = 0.99,
        env_reward_weight: float = 0.0,
        success_threshold: float | None = None,
        success_bonus: float = 0.0,
        terminate_on_success: bool = False,
        every: int = 1,
        history: History | None = None,
        window: int | None = None,
        render_fn: Callable[[gym.Env[Any, Any]], NDArray[np.uint8]] | None = None,
        device: str | torch.device = "auto",
        mode: str = "sync",
        truncate: bool = False,
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self,
            instruction=instruction,
            model=_record(model),
            reward=reward,
            scale=scale,
            gamma=gamma,
            env_reward_weight=env_reward_weight,
            success_threshold=success_threshold,
            success_bonus=success_bonus,
            terminate_on_success=terminate_on_success,
            every=every,
            history=history,
            window=window,
            render_fn=_record(render_fn),
            device=str(device),
            mode=mode,
            truncate=truncate,
        )
        gym.Wrapper.__init__(self, env)
        check_mode(mode)
        if render_fn is None and env.render_mode != "rgb_array":
            raise ValueError(
                f'expected an environment made with render_mode="rgb_array", got render_mode={env.render_mode!r}'
            )
        if render_fn is not None and not callable(render_fn):
            raise ValueError(f"render_fn must be a function of the environment, got {render_fn!r}")
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
        self._shaping = Shaping(
            reward, scale, gamma, env_reward_weight, success_threshold, success_bonus, terminate_on_success
        )
        self.instruction = normalize_instruction(instruction)
        """What the running episode is judged by; change it with `set_instruction`."""
        self._every, self._render_fn = every, render_fn
        live, device = _load(model, device)
        self._engine = QueryEngine(live, window=window, history=history, device=device, truncate=truncate, mode=mode)
        self._next = (self.instruction, self._engine.encode_text(self.instruction))
        first = self._engine.probe(self._next[1])  # a model that cannot pay this reward must not fail in mid-training
        score_of(reward, first.preference, first.progress, first.relevance)
        self.ticket = Ticket(env=self._engine.add_env(), episode=-1, step=0)
        """Names the newest transition: env, episode (0 is the first after construction), step (0 is the reset)."""
        self._ring: FrameRing | None = None
        self._score = 0.0
        self._progress: float | None = None
        self._relevance: float | None = None
        self._running = self._closed = False

    def set_instruction(self, instruction: str) -> None:
        """Change the instruction from the next `reset` on: one episode is judged by one sentence.

        Raises:
            InstructionError: for an instruction that is blank, or over the model's limit.
        """
        text = normalize_instruction(instruction)
        self._next = (text, self._engine.encode_text(text))

    def stats(self) -> dict[str, int]:
        """Counts of queries; submitted = delivered + stale + failed + cancelled + pending."""
        return self._engine.stats()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, forget the frames of the episode before, and score the first frame."""
        if self._closed:
            raise ClosedEnvironmentError("reset was called after close")
        self._running = False
        self.ticket = Ticket(self.ticket.env, self.ticket.episode + 1, 0)
        self._engine.cancel(self.ticket.env)
        with self._noted():
            observation, info = self.env.reset(seed=seed, options=options)
        self.instruction, text = self._next
        logger.debug("%s: instruction %s", self.ticket, self.instruction)
        self._engine.begin(self.ticket.env, self.ticket.episode, text)
        if self._ring is not None:
            self._ring.clear()
        self._measure()
        self._running = True
        return observation, {**info, "vlp": self._info(None)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment and return the reward of the sentence, a Python float."""
        if self._closed:
            raise ClosedEnvironmentError("step was called after close")
        if not self._running:
            raise ResetNeeded(f"call reset before step: the episode has ended or has not begun ({self.ticket})")
        self._running = False  # until the step is through: after an error the episode cannot go on
        self.ticket = Ticket(self.ticket.env, self.ticket.episode, self.ticket.step + 1)
        with self._noted():
            observation, own, terminated, truncated, info = self.env.step(action)
        env_reward = None if own is None else float(own)
        before = self._score
        if self.ticket.step % self._every == 0 or terminated or truncated:
            self._measure()
        success = self._shaping.success(self._score)
        terminated = bool(terminated) or (self._shaping.terminate_on_success and success)
        truncated = bool(truncated) and not terminated
        try:
            reward = self._shaping.reward(before, self._score, terminated=terminated, env_reward=env_reward)
        except ValueError as error:
            raise ValueError(f"{error} ({self.ticket})") from None
        self._running = not (terminated or truncated)
        return observation, reward, terminated, truncated, {**info, "vlp": self._info(env_reward)}

    def close(self) -> None:
        """Close the environment; a second call does nothing. A live model stays usable."""
        if self._closed:
            return
        self._closed, self._running = True, False
        self._engine.cancel(self.ticket.env)
        super().close()

    def __deepcopy__(self, memo: dict[int, Any]) -> VLPRewardWrapper:
        """A copy of the environment in its present state, with the same model."""
        clone = object.__new__(type(self))
        memo[id(self)] = clone
        for name, value in self.__dict__.items():
            clone.__dict__[name] = copy.deepcopy(value, memo)
        return clone

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse: a live model is no part of a pickle."""
        raise TypeError(
            "a live VLPRewardWrapper cannot be pickled: its model lives in this process; "
            "make the wrapper in the process that uses it, for example in the function given to SubprocVecEnv"
        )

    def _measure(self) -> None:
        """Render, and score the frame under the present ticket."""
        with self._noted():
            rendered = self.env.render() if self._render_fn is None else self._render_fn(self.env)
        frame = validate_frame(rendered, where=str(self.ticket))
        if self._ring is None:
            self._ring = FrameRing(self._engine.window, *frame.shape[:2])
        self._ring.push(frame)
        newest = self._ring.take([self._ring.total - 1])[0]
        scored = self._engine.query([self.ticket], [newest])[0]
        self._progress, self._relevance = scored.progress, scored.relevance
        self._score = score_of(self._shaping.kind, scored.preference, scored.progress, scored.relevance)

    def _info(self, env_reward: float | None) -> dict[str, Any]:
        return {
            "env_reward": env_reward,
            "score": self._score,
            "progress": self._progress,
            "relevance": self._relevance,
            "success": self._shaping.success(self._score),
        }

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """The environment's own errors stay what they are, with a note that says when they came."""
        try:
            yield
        except Exception as error:
            note = f"in the environment under VLPRewardWrapper ({self.ticket})"
            if hasattr(error, "add_note"):
                error.add_note(note)
            else:  # Python 3.10
                error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
            raise


def _record(value: Any) -> Any:
    """What the spec may keep of an argument: a live object would be deep-copied with every copy of the spec.

    A spec with the stand-in cannot be made again; without it, it would be made with another model or camera.
    """
    if value is None or isinstance(value, (str, FunctionType)):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else f"<live {type(value).__name__}>"


def _load(
    model: str | os.PathLike[str] | RewardModel, device: str | torch.device
) -> tuple[RewardModel, str | torch.device]:
    """The live model, and where the engine is to put it."""
    if isinstance(model, (str, os.PathLike)):
        from vlp_gym.models.registry import load_reward_model

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):  # building a model draws random weights
            return load_reward_model(model, device=device), "auto"
    if not isinstance(model, RewardModel):
        raise TypeError(f"expected the model as a name, a path or a RewardModel, got {type(model).__name__}")
    return model, device
