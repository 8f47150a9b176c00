"""One environment of a stream: the steps that wait for a score, and the rewards that came of scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.frames.check import FirstEpisode, FrameSize
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.shaping import Shaping, score_of


class Transition(NamedTuple):
    """A reset or step of one environment, as a wrapper hands it to the stream."""

    place: int
    """Which environment of the stream."""
    views: Sequence[object] | None
    """One rendered frame for each camera, or None where the score is held."""
    terminated: bool = False
    truncated: bool = False
    env_reward: float | None = None


@dataclass(eq=False)
class EnvState:
    """One environment of a stream."""

    env: int
    """Its number in the engine."""
    instruction: str
    next: tuple[str, Tensor]
    """The instruction of the next episode, and its tokens."""
    ticket: Ticket
    """Names the newest transition."""
    score: float = 0.0
    """The score of the newest settled step."""
    scored: FrameScore | None = None
    """The model's scores behind it."""
    reward: float = 0.0
    """The newest reward that was delivered: the placeholder of those that are not."""
    waiting: deque[tuple[Ticket, Transition]] = field(default_factory=deque)
    """Steps without a reward, oldest first."""
    answer: tuple[Ticket, FrameScore, float] | None = None
    """The newest score that came, and the number that rewards are made of."""
    answered: Ticket | None = None
    """The newest ticket that was answered."""
    paid_from: Ticket | None = None
    """Since this step, each has waited for its own reward; None: the newest has not."""
    ready: list[Delivery] = field(default_factory=list)
    """Rewards that were not taken yet."""
    watch: FirstEpisode = field(default_factory=FirstEpisode)
    """Looks whether the frames show anything."""
    size: FrameSize = field(default_factory=FrameSize)
    broken: bool = False
    """An error of the model has ended the running episode."""
    over: bool = True
    """The newest step has ended its episode, or there was none."""

    def begin(self, *, late: bool) -> Tensor:
        """Start the next episode; returns the tokens of its instruction."""
        self.ticket = Ticket(self.env, self.ticket.episode + 1, 0)
        self.instruction, text = self.next
        self.broken = False
        if not late:
            self.waiting.clear()  # left by an interrupt
        return text

    def receive(self, answer: Answer, shaping: Shaping) -> Exception | None:
        """Take the answer to one ticket and make the rewards that it allows; returns an error that it brings.

        Raises:
            RuntimeError: if the ticket was answered before.
        """
        ticket, score, error = answer
        if self.answered is not None and ticket <= self.answered:
            raise RuntimeError(f"an answer came twice ({ticket})")
        self.answered = ticket
        # The answers of an environment come in order: what is passed over will never be answered (an interrupt).
        while self.waiting and self.waiting[0][0] < ticket:
            self.give_up(self.waiting[0][0].episode)
        if not self.waiting or self.waiting[0][0] != ticket:
            return None  # of a step that never came back to the agent
        if score is not None:
            try:
                self.answer = (ticket, score, score_of(shaping.kind, *score))
            except ValueError as wrong:
                error = ValueError(f"{wrong} ({ticket})")
        if error is not None:
            self.give_up(ticket.episode)
        self.settle(shaping)
        return error

    def give_up(self, episode: int) -> None:
        """The rest of an episode has no rewards: a score is missing."""
        self.waiting = deque(step for step in self.waiting if step[0].episode != episode)
        self.broken |= episode == self.ticket.episode

    def forget_newest(self) -> None:
        """The newest step has not come back to the agent: it has no reward."""
        self.waiting = deque(step for step in self.waiting if step[0] != self.ticket)
        self.ready = [delivery for delivery in self.ready if delivery.ticket != self.ticket]

    def drop_paid(self) -> None:
        """Forget the rewards that steps have returned and nobody took: kept, they would fill the memory."""
        if self.paid_from is not None:
            self.ready = [delivery for delivery in self.ready if delivery.ticket < self.paid_from]

    def settle(self, shaping: Shaping) -> None:
        """Turn the scores that are there into rewards, oldest first, up to the first that is missing."""
        while self.waiting:
            ticket, transition = self.waiting[0]
            before, now, scored = self.score, self.score, self.scored
            if transition.views is not None:
                if self.answer is None or self.answer[0] != ticket:
                    return
                _, scored, now = self.answer
            self.waiting.popleft()
            self.score, self.scored = now, scored
            if ticket.step == 0:
                continue
            success = shaping.success(now)
            terminated = transition.terminated or (shaping.terminate_on_success and success)
            self.reward = shaping.reward(
                before, now, terminated=terminated, truncated=transition.truncated, env_reward=transition.env_reward
            )
            assert scored is not None
            self.ready.append(Delivery(ticket, self.reward, now, scored.progress, scored.relevance, success))
