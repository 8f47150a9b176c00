"""From frames to rewards for the environments of one wrapper: scores may come late, rewards come in order.

Every wrapper is a `RewardStream` with an environment around it, in both modes. So the same ticket gets the same reward
whether its score was waited for or came ten steps later.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.engine import Mode, QueryEngine, check_mode
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.errors import QueryError
from vlp_gym.frames.check import FrameRing, validate_frame
from vlp_gym.models.protocol import History, RewardModel
from vlp_gym.rewards.shaping import Shaping, score_of
from vlp_gym.text import normalize_instruction


class Delivery(NamedTuple):
    """The reward of one transition, and what it was made of; numbers only."""

    ticket: Ticket
    reward: float
    score: float
    progress: float | None
    relevance: float | None
    success: bool


class Transition(NamedTuple):
    """What a wrapper tells the stream of one environment after a reset or step."""

    lane: int
    """Which environment of the stream."""
    views: Sequence[object] | None
    """One rendered frame for each camera, or None where the score is held."""
    terminated: bool = False
    truncated: bool = False
    env_reward: float | None = None


@dataclass(eq=False)
class _Lane:
    """One environment."""

    env: int
    """Its number in the engine."""
    instruction: str
    next: tuple[str, Tensor]
    """The instruction of the next episode."""
    ticket: Ticket
    score: float = 0.0
    """The score of the newest settled step."""
    scored: FrameScore | None = None
    """What that was made of."""
    reward: float = 0.0
    """The newest reward that was delivered: the placeholder of those that are not."""
    waiting: deque[tuple[Ticket, Transition]] = field(default_factory=deque)
    answer: tuple[Ticket, FrameScore, float] | None = None
    """The newest score that came, and the number that rewards are made of."""
    answered: Ticket | None = None
    """The newest ticket that was answered."""
    ready: list[Delivery] = field(default_factory=list)
    ring: FrameRing | None = None
    broken: bool = False
    """An error of the model has ended the running episode."""


class RewardStream:
    """Gives out tickets, asks the engine, and turns its answers into rewards.

    Args:
        instructions: one for each environment.
        model: name, folder or hub id for `load_reward_model`, a live `RewardModel`, or a `QueryEngine`, which several
            wrappers may share and which brings its own window, history, device, truncate and mode.
        shaping: from a score to a reward.
        every, history, window, device, mode, truncate: as `VLPRewardWrapper` has them.

    Raises:
        ValueError: for an argument that makes no sense, or a model without progress where the reward needs it.
        InstructionError: for an instruction that is blank, or over the model's limit.
    """

    def __init__(
        self,
        instructions: Sequence[str],
        model: str | os.PathLike[str] | RewardModel | QueryEngine,
        shaping: Shaping,
        *,
        every: int = 1,
        history: History | None = None,
        window: int | None = None,
        device: str | torch.device = "auto",
        mode: Mode = "sync",
        truncate: bool = False,
    ) -> None:
        check_mode(mode)
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
        sentences = [normalize_instruction(instruction) for instruction in instructions]
        self.shaping, self.every = shaping, every
        self._owned = not isinstance(model, QueryEngine)
        if isinstance(model, QueryEngine):
            if (history, window, device, truncate) != (None, None, "auto", False) or mode == "async" != model.mode:
                raise ValueError("a QueryEngine brings its own history, window, device, truncate and mode")
            self.engine = model
        else:
            live, device = _load(model, device)
            self.engine = QueryEngine(live, window=window, history=history, device=device, truncate=truncate, mode=mode)
        try:
            if self.engine.mode == "async" and shaping.terminate_on_success:
                raise ValueError("terminate_on_success needs the score at once; use mode='sync'")
            texts = [self.engine.encode_text(sentence) for sentence in sentences]
            first = self.engine.probe(texts[0])  # a model that cannot pay this reward must not fail in mid-training
            score_of(shaping.kind, first.preference, first.progress, first.relevance)
        except BaseException:
            if self._owned:
                self.engine.close()
            raise
        self._lanes = []
        for sentence, text in zip(sentences, texts, strict=True):
            env = self.engine.add_env()
            self._lanes.append(_Lane(env, sentence, (sentence, text), Ticket(env, -1, 0)))
        self.by_poll = False
        """Late rewards come by `poll` and `flush` alone. An info can get lost: where one of several environments raises
        in a step, those of the others never reach the agent."""
        self.yields = False
        """The engine works while the environment does, and rests while the agent learns."""
        self._errors: list[Exception] = []
        self._index = {lane.env: index for index, lane in enumerate(self._lanes)}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def late(self) -> bool:
        """Whether rewards come late: the mode is "async"."""
        return self.engine.mode == "async"

    def ticket(self, index: int) -> Ticket:
        """Of the newest transition: env, episode (0 is the first), step (0 is the reset)."""
        return self._lanes[index].ticket

    def instruction(self, index: int) -> str:
        """What the running episode is judged by."""
        return self._lanes[index].instruction

    def placeholder(self, index: int) -> float:
        """The newest reward that was delivered, 0.0 at first."""
        return self._lanes[index].reward

    def set_instruction(self, index: int, instruction: str) -> None:
        """Change the instruction from the next episode on: one episode is judged by one sentence."""
        text = normalize_instruction(instruction)
        self._lanes[index].next = (text, self.engine.encode_text(text))

    def begin(self, index: int) -> Ticket:
        """Start an episode; returns the ticket of its reset frame. Rewards of the episode before may still come."""
        lane = self._lanes[index]
        lane.ticket = Ticket(lane.env, lane.ticket.episode + 1, 0)
        lane.instruction, text = lane.next
        lane.broken = False
        if not self.late:
            lane.waiting.clear()  # left by an interrupt
        if lane.ring is not None:
            lane.ring.clear()
        self.engine.begin(lane.env, lane.ticket.episode, text)
        return lane.ticket

    def advance(self, index: int) -> Ticket:
        """The ticket of the next step."""
        lane = self._lanes[index]
        lane.ticket = lane.ticket._replace(step=lane.ticket.step + 1)
        return lane.ticket

    def due(self, index: int, *, over: bool) -> bool:
        """Whether the newest step is to be rendered and scored; the last one of an episode always is."""
        return over or (self._lanes[index].ticket.step % self.every == 0 and not self.engine.crowded(len(self)))

    def observe(self, transitions: Sequence[Transition]) -> None:
        """Ask for the rewards of the newest steps, at most one for each environment.

        Raises:
            FrameError: for a frame that is none.
            ValueError: if the environment's own reward is to be mixed in and is no number.
            QueryError, TypeError: if the model fails ("sync").
            QueryTimeout: if no slot is free for too long ("async").
        """
        tickets, frames, scored = [], [], []
        only_the_last = self.shaping.kind == "final" and self.shaping.success_threshold is None
        for number, views, terminated, truncated, env_reward in transitions:
            lane = self._lanes[number]
            if lane.ticket.step > 0:
                try:
                    self.shaping.check_env_reward(env_reward)
                except ValueError as error:
                    raise ValueError(f"{error} ({lane.ticket})") from None
            if views is not None:
                frames.append(self._own(lane, views))
                tickets.append(lane.ticket)
                scored.append(terminated or truncated or not only_the_last)
        lanes = [self._lanes[transition.lane] for transition in transitions]
        try:
            for lane, transition in zip(lanes, transitions, strict=True):  # the frames themselves are not kept
                lane.waiting.append((lane.ticket, transition._replace(views=None if transition.views is None else ())))
            self.engine.submit(tickets, frames, scored=scored)
        except BaseException:  # these steps never get back to the agent
            for lane in lanes:
                lane.waiting = deque(step for step in lane.waiting if step[0] != lane.ticket)
            raise
        self.settle()
        if not self.late:
            self.raise_errors()
            for lane in lanes:
                if lane.waiting:  # an interrupt has come between the score and here
                    self._give_up(lane, lane.ticket.episode)
                    raise QueryError(f"no score came; begin another episode ({lane.ticket})")

    def work(self, on: bool) -> None:
        """Called when the environment begins and when it ends its part of a step."""
        if self.yields:
            self.engine.hold(not on)

    def yield_to_learner(self, on: bool) -> None:
        """See the wrappers' method of this name."""
        self.yields = on
        self.engine.hold(on)

    def broken(self, index: int) -> bool:
        """Whether an error of the model has ended the running episode: its later steps would have no reward."""
        return self._lanes[index].broken

    def raise_errors(self) -> None:
        """Raise what the model has raised for an earlier step, once; to be called before the environment moves."""
        if self.late:
            self.settle()
        if self._errors:
            errors, self._errors = self._errors, []
            raise errors[0]

    def settle(self) -> None:
        """Turn the scores that have come into rewards; an error of the model is kept for `raise_errors`."""
        self._settle(self.engine.poll(self._index))

    def collect(self) -> list[list[Delivery]]:
        """Take what goes into the infos."""
        return [[] for _ in self._lanes] if self.by_poll else self._take()

    def poll(self, timeout_s: float = 0.0) -> list[list[Delivery]]:
        """Take the rewards that are there: for each environment a list, in the order of its steps.

        Args:
            timeout_s: how long to wait for the first one, if something is pending.

        Raises:
            QueryError, TypeError: what the model raised; each error once, and no reward that was there is lost by it.
        """
        deadline = time.monotonic() + timeout_s
        self.settle()
        while not self._errors and not any(lane.ready for lane in self._lanes):
            answers = self.engine.poll(self._index, deadline - time.monotonic())
            if not answers:
                break
            self._settle(answers)
        self.raise_errors()
        return self._take()

    def flush(self, timeout_s: float | None = None) -> list[list[Delivery]]:
        """Wait until every reward is there, and take them as `poll` does.

        Raises:
            QueryTimeout: if that takes longer than `timeout_s` (None: the engine's own).
        """
        self._settle(self.engine.flush(self._index, timeout_s))
        self.raise_errors()
        return self._take()

    def _take(self) -> list[list[Delivery]]:
        deliveries = [lane.ready for lane in self._lanes]
        for lane in self._lanes:
            lane.ready = []
        return deliveries

    def info(self, index: int, env_reward: float | None) -> dict[str, Any]:
        """What ``info["vlp"]`` says of an environment: the newest settled score."""
        lane = self._lanes[index]
        return {
            "env_reward": env_reward,
            "score": lane.score,
            "progress": None if lane.scored is None else lane.scored.progress,
            "relevance": None if lane.scored is None else lane.scored.relevance,
            "success": self.shaping.success(lane.score),
        }

    def close(self) -> None:
        """Give up what is pending; an engine that was given stays open for the others."""
        for lane in self._lanes:
            self.engine.cancel(lane.env)
        if self._owned:
            self.engine.close()

    def _own(self, lane: _Lane, views: Sequence[object]) -> list[NDArray[np.uint8]]:
        """Checked views of one size, each ``[H, W, 3]``; the engine copies them."""
        frames = [validate_frame(view, where=str(lane.ticket)) for view in views]
        if lane.ring is None:
            lane.ring = FrameRing(len(frames), *frames[0].shape[:2])
        return [lane.ring.push(frame) for frame in frames]

    def _settle(self, answers: Sequence[Answer]) -> None:
        for ticket, score, error in answers:
            lane = self._lanes[self._index[ticket.env]]
            if lane.answered is not None and ticket <= lane.answered:
                raise RuntimeError(f"an answer came twice ({ticket})")
            lane.answered = ticket
            # The answers of an environment come in order: what is passed over will never be answered (an interrupt).
            self._advance(lane)
            while lane.waiting and lane.waiting[0][0] < ticket:
                self._give_up(lane, lane.waiting[0][0].episode)
            if not lane.waiting or lane.waiting[0][0] != ticket:
                continue  # of a step that never came back to the agent
            if score is not None:
                try:
                    value = score_of(self.shaping.kind, score.preference, score.progress, score.relevance)
                    lane.answer = (ticket, score, value)
                except ValueError as wrong:
                    error = ValueError(f"{wrong} ({ticket})")
            if error is not None:
                self._give_up(lane, ticket.episode)
                self._errors.append(error)
            self._advance(lane)
        for lane in self._lanes:
            self._advance(lane)

    def _give_up(self, lane: _Lane, episode: int) -> None:
        """The rest of an episode has no rewards: a score is missing."""
        lane.waiting = deque(step for step in lane.waiting if step[0].episode != episode)
        lane.broken |= episode == lane.ticket.episode

    def _advance(self, lane: _Lane) -> None:
        """Turn the scores that are there into rewards, oldest first, up to the first that is missing."""
        while lane.waiting:
            ticket, transition = lane.waiting[0]
            before, now, scored = lane.score, lane.score, lane.scored
            if transition.views is not None:
                if lane.answer is None or lane.answer[0] != ticket:
                    return
                _, scored, now = lane.answer
            lane.waiting.popleft()
            lane.score, lane.scored = now, scored
            if ticket.step == 0:
                continue
            success = self.shaping.success(now)
            terminated = transition.terminated or (self.shaping.terminate_on_success and success)
            ends = {"terminated": terminated, "truncated": transition.truncated}
            lane.reward = self.shaping.reward(before, now, **ends, env_reward=transition.env_reward)
            assert scored is not None
            lane.ready.append(Delivery(ticket, lane.reward, now, scored.progress, scored.relevance, success))


class Streaming:
    """What all wrappers pass on to their stream."""

    _stream: RewardStream

    @property
    def engine(self) -> QueryEngine:
        """What asks the model."""
        return self._stream.engine

    def stats(self) -> dict[str, int]:
        """Counts of queries; submitted = delivered + stale + failed + cancelled + pending."""
        return self._stream.engine.stats()

    def latencies(self) -> dict[str, float]:
        """Seconds from a step to its score: ``latency_p50_s`` and ``latency_p99_s`` of the newest 1,000."""
        return self._stream.engine.latencies()

    def yield_to_learner(self, on: bool = True) -> None:
        """Let the model work while the environment steps and renders, and rest while the agent learns.

        Both need Python's interpreter lock; what waits for a reward is not held up.
        """
        self._stream.yield_to_learner(on)

    def deliver_by_poll(self) -> None:
        """From now on late rewards come by `poll` and `flush` alone, and no longer in infos.

        For whoever may lose an info, as a vector environment does when one of its environments raises.
        """
        self._stream.by_poll = True


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
        raise TypeError(
            f"expected the model as a name, a path, a RewardModel or a QueryEngine, got {type(model).__name__}"
        )
    return model, device
