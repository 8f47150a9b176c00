"""From frames to rewards for the environments of one wrapper: scores may come late, rewards come in order.

Every wrapper is a `RewardStream` with an environment around it, in both modes. So the same ticket gets the same reward
whether its score was waited for or came ten steps later. A reward comes late only to those who take late rewards: who
polls does so until the next reset. All others wait, and after a whole episode are told why.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.engine.unknown import unknown
from vlp_gym.engine.worker import reopen
from vlp_gym.errors import QueryError, VLPError
from vlp_gym.frames.check import validate_frame
from vlp_gym.rewards.delivery import Delivery, Receipt
from vlp_gym.rewards.env_state import EnvState
from vlp_gym.rewards.env_state import Transition as Transition
from vlp_gym.rewards.info import HEADS, TAKERS, numbers
from vlp_gym.rewards.shaping import Shaping, score_of
from vlp_gym.text import normalize_instruction

logger = logging.getLogger("vlp_gym")

Untaken = Literal["warn", "raise", "wait"]

LONG = 100
"""So many steps that wait in a row are logged if the episode does not end."""
NOBODY_TAKES = (
    'mode="async", but nobody takes the late rewards: each step waits for its own. With Stable-Baselines3 give learn() '
    "a VLPRewardCallback, and an off-policy model replay_buffer_class=VLPReplayBuffer; in a loop of your own use "
    'vlp_gym.LateRewards(env); where waiting is right, as in an evaluation, set mode="sync" or untaken="wait"'
)


def check_untaken(untaken: Untaken) -> None:
    """Raise ValueError unless it is one of the words."""
    if untaken not in get_args(Untaken):
        raise ValueError(f"untaken must be one of {list(get_args(Untaken))}, got {untaken!r}")


class RewardStream:
    """Gives out tickets, asks the engine, and turns its answers into rewards.

    Args:
        instructions: one for each environment.
        engine: what asks the model; it sets the mode, the window, the history and the device.
        shaping: from a score to a reward.
        every: steps between two scored frames.
        owned: no other stream uses the engine: it is closed with this one.
        flat: the infos have keys such as "vlp/score".
        untaken: what a step does after a whole episode whose late rewards nobody took.

    Raises:
        ValueError, InstructionError: as `VLPRewardWrapper` describes.
    """

    def __init__(
        self,
        instructions: Sequence[str],
        engine: QueryEngine,
        shaping: Shaping,
        *,
        every: int = 1,
        owned: bool = True,
        flat: bool = False,
        untaken: Untaken = "warn",
    ) -> None:
        self.flat, self._untaken = flat, untaken
        self.engine, self.shaping, self.every, self._owned = engine, shaping, every, owned
        self.late = engine.mode == "async"
        """Whether rewards may come late."""
        self.receipt = Receipt()
        """Who takes late rewards: if nobody does, a step waits for its own."""
        self._told = self._told_of_no_end = self._met = False
        self._ended = False
        """The newest step has ended an episode."""
        self.raises_in_poll = False
        """See `Streaming.raise_in_poll`."""
        self.yields = False
        """The engine works while the environment steps, and rests while the agent learns."""
        self._errors: list[Exception] = []
        try:
            if self.late and shaping.terminate_on_success:
                raise ValueError("terminate_on_success needs the score at once; use mode='sync'")
            sentences = [normalize_instruction(instruction) for instruction in instructions]
            texts = [engine.encode_text(sentence) for sentence in sentences]
            probed = engine.probe(texts[0])
            score_of(shaping.kind, *probed)  # a model that cannot pay this must not fail in training
            self._heads = [head for head in HEADS if getattr(probed, head) is not None]
            ticket = Ticket(0, 0, 0) if self.late else None
            self.info_keys = list(numbers(0.0, 0.0, None, heads=self._heads, success=False, ticket=ticket))
        except BaseException:
            if owned:
                engine.close()
            raise
        self._states: list[EnvState] = []
        for sentence, text in zip(sentences, texts, strict=True):
            env = engine.add_env()
            self._states.append(EnvState(env, sentence, (sentence, text), Ticket(env, -1, 0)))
        self._by_env = {state.env: state for state in self._states}
        TAKERS.update(dict.fromkeys(self._by_env, self))

    def __len__(self) -> int:
        return len(self._states)

    def ticket(self, index: int) -> Ticket:
        """Names the newest transition: env, episode (0 is the first), step (0 is the reset)."""
        return self._states[index].ticket

    def instruction(self, index: int) -> str:
        """The instruction of the running episode."""
        return self._states[index].instruction

    def placeholder(self, index: int) -> float:
        """The newest reward that was delivered, 0.0 at first."""
        return self._states[index].reward

    def set_instruction(self, index: int, instruction: str) -> None:
        """Change the instruction from the next episode on: one episode is judged by one sentence."""
        text = normalize_instruction(instruction)
        self._states[index].next = (text, self.engine.encode_text(text))

    def begin(self, index: int) -> Ticket:
        """Start an episode; returns the ticket of its reset frame. Rewards of the episode before may still come."""
        state = self._states[index]
        if not state.over:
            self.receipt.always = False  # this is no autoreset: whoever has taken late rewards may be gone
            self._warn_of_no_end(state)
        text = state.begin(late=self.late)
        self.engine.begin(state.env, state.ticket.episode, text)
        return state.ticket

    def take_late_rewards(self, on: bool) -> None:
        """See the wrappers' method of this name."""
        self.receipt.say(always=on)

    def advance(self, index: int) -> Ticket:
        """The ticket of the next step."""
        state = self._states[index]
        env, episode, step = state.ticket
        state.ticket = Ticket(env, episode, step + 1)
        return state.ticket

    def due(self, index: int, *, over: bool) -> bool:
        """Whether the newest step is to be rendered and scored; the last one of an episode always is."""
        if over:
            return True
        on_stride = self._states[index].ticket.step % self.every == 0
        return on_stride and not self.engine.crowded(len(self._states))

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
        steps = False
        for place, views, terminated, truncated, env_reward in transitions:
            state = self._states[place]
            state.over = terminated or truncated
            self._ended |= state.over
            if state.ticket.step > 0:
                steps = True
                self.shaping.check_env_reward(env_reward, where=state.ticket)
            if views is not None:
                fit = state.size.fit
                frames.append([fit(validate_frame(view, where=state.ticket)) for view in views])
                if not state.watch.over:
                    self._watch(state, frames[-1], over=terminated or truncated)
                tickets.append(state.ticket)
                scored.append(terminated or truncated or not only_the_last)
        if frames and not self._met:
            self._meet(frames, tickets)
        try:
            for transition in transitions:
                state = self._states[transition.place]
                kept = transition if transition.views is None else transition._replace(views=())  # frames are not kept
                state.waiting.append((state.ticket, kept))
            self.engine.submit(tickets, frames, scored=scored)
            if self.late and steps:
                taken = self._taken()
                for state in (self._states[transition.place] for transition in transitions):
                    state.paid_from = None if taken else state.paid_from or state.ticket
                if not taken:
                    self._settle(self.engine.flush(self._by_env))
                    self.raise_errors()
        except BaseException:  # these steps never get back to the agent
            for transition in transitions:
                self._states[transition.place].forget_newest()
            raise
        if not self.late:
            self._settle(self.engine.poll(self._by_env))
            self.raise_errors()
        for transition in transitions:
            state = self._states[transition.place]
            if transition.views is None:
                state.settle(self.shaping)
            if state.waiting and not self.late:  # an interrupt has come between the score and here
                state.give_up(state.ticket.episode)
                raise QueryError(f"no score came; begin another episode ({state.ticket})")

    def _watch(self, state: EnvState, views: Sequence[NDArray[np.uint8]], *, over: bool) -> None:
        """Warn once if the first episode shows nothing."""
        warning = state.watch.end() if state.ticket.episode > 0 else state.watch.see(views, over=over)
        if warning is not None:
            for each in self._states:
                each.watch.over = True
            warnings.warn(warning, stacklevel=3)

    def _meet(self, frames: Sequence[Sequence[NDArray[np.uint8]]], tickets: Sequence[Ticket]) -> None:
        """Warn once if the model does not know such pictures."""
        said = unknown(self.engine, np.concatenate([np.stack(views) for views in frames]), where=tickets[0])
        self._met = True
        if said is not None:
            warnings.warn(said, stacklevel=3)

    def env_is_stepping(self, on: bool) -> None:
        """Mark whether the environment is stepping; with `yield_to_learner` the engine runs only then."""
        if self.yields:
            self.engine.pause(not on)

    def yield_to_learner(self, on: bool) -> None:
        """See the wrappers' method of this name."""
        self.yields = on
        self.engine.pause(on)

    def broken(self, index: int) -> bool:
        """Whether an error of the model has ended the running episode: its later steps would have no reward."""
        return self._states[index].broken

    def raise_errors(self) -> None:
        """Raise what the model has raised for an earlier step, once."""
        if self._errors:
            errors, self._errors = self._errors, []
            raise errors[0]

    def settle(self) -> None:
        """Before a step: turn scores that have come into rewards, unless `poll` does that, and raise errors.

        Raises:
            VLPError: after a whole episode, if nobody has taken late rewards since the stream was made.
        """
        if self.late:
            if self._ended and not self.receipt.taken():
                self._tell_of_untaken(raises=self._untaken == "raise")
                for state in self._states:
                    state.drop_paid()
            self._ended = False
            if not self.raises_in_poll:
                self._settle(self.engine.poll(self._by_env))
        self.raise_errors()

    def collect(self) -> list[list[Delivery]]:
        """Take what the steps have paid ("sync")."""
        return self._take()

    def poll(self, timeout_s: float = 0.0, *, raises: bool = True) -> list[list[Delivery]]:
        """For each environment what `VLPRewardWrapper.poll` returns; an error of the model loses no reward."""
        self.receipt.poll()
        self._settle(self.engine.poll(self._by_env))
        if timeout_s > 0.0:
            deadline = time.monotonic() + timeout_s
            while not self._errors and not any(state.ready for state in self._states):
                answers = self.engine.poll(self._by_env, deadline - time.monotonic())
                if not answers:
                    break
                self._settle(answers)
        if raises:
            self.raise_errors()
        return self._take()

    def take(self, env: int) -> list[Delivery]:
        """What has come for one environment; what the model has raised comes with its next step."""
        self.receipt.poll()
        self._settle(self.engine.poll(self._by_env))
        taken, self._by_env[env].ready = self._by_env[env].ready, []
        return taken

    def flush(self, timeout_s: float | None = None) -> list[list[Delivery]]:
        """For each environment what `VLPRewardWrapper.flush` returns."""
        self.receipt.poll()
        self._settle(self.engine.flush(self._by_env, timeout_s))
        self.raise_errors()
        return self._take()

    def info(self, index: int, env_reward: float | None) -> dict[str, Any]:
        """The ``info["vlp"]`` of an environment: the newest settled score."""
        state = self._states[index]
        return numbers(
            env_reward,
            state.score,
            state.scored,
            heads=self._heads,
            success=self.shaping.success(state.score),
            ticket=state.ticket if self.late else None,
        )

    def success(self, index: int) -> dict[str, bool]:
        """``is_success`` of an environment's newest step, which Stable-Baselines3 counts, where that is known."""
        state = self._states[index]
        if self.shaping.success_threshold is None or state.waiting:
            return {}
        return {"is_success": self.shaping.success(state.score)}

    def close(self) -> None:
        """Give up what is pending; an engine that is shared stays open for the others."""
        if self._owned:
            self.engine.close()
            return
        for state in self._states:
            self.engine.cancel(state.env)

    def _taken(self) -> bool:
        """Whether somebody takes late rewards; asked once a step. If nobody does for long, that is logged."""
        taken = self.receipt.used()
        if self.receipt.waited == LONG:
            self._tell_of_untaken()
        return taken

    def _tell_of_untaken(self, *, raises: bool = False) -> None:
        """If nobody has ever said anything about late rewards, raise, or log it once."""
        if self._untaken == "wait" or self.receipt.known:
            return
        if raises:
            raise VLPError(NOBODY_TAKES)
        if not self._told:
            self._told = True
            logger.warning(NOBODY_TAKES)

    def _warn_of_no_end(self, state: EnvState) -> None:
        """With "final" an episode without an end pays nothing at all."""
        if self.shaping.kind == "final" and state.ticket.step > 0 and not self._told_of_no_end:
            self._told_of_no_end = True
            warnings.warn(
                f'reset before the end of an episode: reward="final" pays at the end only, so that it paid 0 '
                f"({state.ticket}). Put the time limit inside VLPRewardWrapper, not around it",
                stacklevel=4,
            )

    def reopen(self) -> None:
        """Undo `close`."""
        if self._owned:
            reopen(self.engine)

    def _settle(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            error = self._by_env[answer.ticket.env].receive(answer, self.shaping)
            if error is not None:
                self._errors.append(error)

    def _take(self) -> list[list[Delivery]]:
        taken = [state.ready for state in self._states]
        for state in self._states:
            state.ready = []
        return taken
