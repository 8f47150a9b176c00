"""Late scores on a CUDA stream are the scores of "sync", ticket by ticket, while environments and model fail."""

from __future__ import annotations

import importlib.util
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.gpu.models import SENTENCE, OnDevice
from tests.gpu.report import Figure
from tests.gpu.sizes import Size
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.models.protocol import Scores
from vlp_gym.testing import PaintedEnv, painted_value

LEFT = 0.1
"""Share of the episodes that are left early, half of them with what is pending given up."""


class FaultyPainted(nn.Module):
    """A model for any device that returns what is painted in the newest and in the oldest frame of a window.

    They are its preference and its relevance, so a token that is lost or in another window changes one of them.

    Args:
        rate: one of this many frames makes it answer NaN, the same frames each time; one of this many calls raises,
            and one of this many leaves much work on the device.
        load: width of the matrices of that work.
    """

    window, history, frame_size = 4, "sliding", (8, 8)

    def __init__(self, rate: int, load: int) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("weights", torch.tensor([65536.0, 256.0, 1.0]) / (1 << 24))
        self.register_buffer("load", torch.eye(load))
        self.calls = self.raised = self.on_default_stream = 0

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """One token of ones a sentence, ``[B, 1, 1]``."""
        return torch.ones(len(instructions), 1, 1, device=self.weights.device)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The painted value as token, ``[N, 1, 1]``."""
        return (frames[:, 0, 0].float() * self.weights).sum(-1).view(-1, 1, 1)  # exact: sums of multiples of 2^-24

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """What is painted in each window, or a fault."""
        self.calls += 1
        if frames.is_cuda:
            self.on_default_stream += torch.cuda.current_stream() == torch.cuda.default_stream()
        if self.calls % self.rate == 0:
            self.raised += 1
            raise ZeroDivisionError("division by zero")
        values = frames[:, :, 0, 0]
        if self.calls % self.rate == self.rate // 2:
            for _ in range(20):
                self.load = self.load @ self.load
            values = values * self.load[0, 0]
        newest = values[:, -1]
        bad = ((newest * (1 << 24)).long() * 2654435761 >> 13) % self.rate == 0  # a hash of what is painted
        return Scores(torch.where(bad, torch.nan, newest), None, values[:, 0].clone())


@dataclass
class Player:
    """One painted environment of the engine: episodes of known lengths, some of which are left early."""

    number: int
    """In the engine's tickets; no other of the process has it."""
    env: PaintedEnv
    """Painted with its place among the players, the same in both modes."""
    left_at: dict[int, tuple[int, bool]]
    """Episode: the step after which it is left, and whether what is pending is given up."""
    over: bool = True


@dataclass
class Played:
    """What became of every ticket; the players' places stand for the engine's numbers."""

    given: int = 0
    open: defaultdict[int, set[Ticket]] = field(default_factory=lambda: defaultdict(set))
    """Tickets of each environment that have no answer yet."""
    scores: dict[Ticket, tuple[float, float]] = field(default_factory=dict)
    spoiled: set[tuple[int, int]] = field(default_factory=set)
    """(env, episode) in which tickets may stay without a score."""
    newest: dict[int, Ticket] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("doubled", "disordered", "wrong"), 0))
    stats: dict[str, int] = field(default_factory=dict)
    raised: int = 0
    on_default_stream: int = 0
    seconds: float = 0.0

    places: dict[int, int] = field(default_factory=dict)
    """The engine's number -> the player's place."""

    def note(self, answer: Answer, window: int) -> None:
        """Count one answer."""
        score, error = answer.score, answer.error
        ticket = self.placed(answer.ticket)
        self.counts["doubled"] += ticket not in self.open[ticket.env]
        self.open[ticket.env].discard(ticket)
        self.counts["disordered"] += ticket <= self.newest.get(ticket.env, Ticket(ticket.env, -1, 0))
        self.newest[ticket.env] = ticket
        if score is None:
            assert error is not None
            self.spoiled.add(ticket[:2])
            return
        oldest = painted_value(*ticket[:2], max(0, ticket.step - window + 1))
        self.counts["wrong"] += (score.preference, score.relevance) != (painted_value(*ticket), oldest)
        self.scores[ticket] = (score.preference, score.relevance or 0.0)

    def placed(self, ticket: Ticket) -> Ticket:
        """The ticket under the player's place."""
        return Ticket(self.places[ticket.env], ticket.episode, ticket.step)

    def give_up(self, env: int) -> None:
        """Nothing more is to come for what is open now."""
        self.spoiled |= {ticket[:2] for ticket in self.open[env]}

    @property
    def lost(self) -> int:
        """Tickets without an answer whose episode nothing has spoiled."""
        return sum(ticket[:2] not in self.spoiled for open_ in self.open.values() for ticket in open_)


def play(mode: Any, size: Size, device: str, seed: int = 0) -> Played:
    """Play all episodes of all environments on one engine, and keep what comes back."""
    rng = np.random.default_rng(seed)
    model = FaultyPainted(size.fault_every, 2048 if device == "cuda" else 64).to(device)
    engine = QueryEngine(model, mode=mode, slots=8 * size.envs, max_batch=3 * size.envs)
    text = engine.encode_text(SENTENCE)
    players, played = [], Played()
    for place in range(size.envs):
        lengths = rng.integers(1, 60, size.episodes).tolist()
        draws = rng.random((size.episodes, 2)).tolist()
        left_at = {
            episode: (int(length * draw / LEFT), give_up < 0.5)
            for episode, (length, (draw, give_up)) in enumerate(zip(lengths, draws, strict=True))
            if draw < LEFT
        }
        number = engine.add_env()
        played.places[number] = place
        players.append(Player(number, PaintedEnv(lengths, env=place), left_at))
    learner = torch.eye(256, device=device)
    started = time.perf_counter()
    while players:
        tickets, frames = [], []
        for player in list(players):
            env = player.env
            if player.over and env.episode == size.episodes - 1:
                players.remove(player)
                continue
            if player.over:
                if player.left_at.get(env.episode, (0, False))[1]:
                    engine.cancel(player.number)
                    played.give_up(env.env)
                env.reset()
                engine.begin(player.number, env.episode, text)
                player.over = False
            else:
                player.over = env.step(0)[2]
            player.over |= player.left_at.get(env.episode, (-1, False))[0] == env.elapsed
            tickets.append(Ticket(player.number, env.episode, env.elapsed))
            frames.append(env.render())
        played.given += len(tickets)
        for ticket in map(played.placed, tickets):
            played.open[ticket.env].add(ticket)
        engine.submit(tickets, frames)
        learner = learner @ learner  # an agent uses the device from this thread
        for answer in engine.poll():
            played.note(answer, model.window)
            for player in players:
                if answer.error is not None and answer.ticket[:2] == (player.number, player.env.episode):
                    player.over = True
    for answer in engine.flush():
        played.note(answer, model.window)
    played.seconds = time.perf_counter() - started
    played.stats = engine.stats()
    played.raised, played.on_default_stream = model.raised, model.on_default_stream
    engine.close()
    return played


def equality(size: Size, device: str) -> Iterator[Figure]:
    """Both modes on the device, ticket by ticket; then late rewards in SB3's replay buffer."""
    modes = {mode: play(mode, size, device) for mode in ("sync", "async")}
    for mode, played in modes.items():
        transitions = sum(ticket.step > 0 for ticket in played.scores)
        yield Figure(f"{mode}: transitions scored", transitions, at_least=size.transitions)
        yield Figure(f"{mode}: transitions/s", transitions / played.seconds)
        yield Figure(f"{mode}: tickets lost", played.lost, at_most=0)
        for name, count in played.counts.items():
            yield Figure(f"{mode}: answers {name}", count, at_most=0)
        stats = played.stats
        open_ = stats["submitted"] - sum(count for name, count in stats.items() if name != "submitted")
        yield Figure(f"{mode}: tickets in no account", abs(open_) + stats["pending"], at_most=0)
        yield Figure(f"{mode}: tickets given out and not submitted", played.given - stats["submitted"], at_most=0)
        yield Figure(f"{mode}: tickets failed", stats["failed"], at_least=1)
        yield Figure(f"{mode}: tickets cancelled or stale", stats["cancelled"] + stats["stale"])
        yield Figure(f"{mode}: batches in which the model raised", played.raised, at_least=1)
    sync, late = modes["sync"], modes["async"]
    both = sync.scores.keys() & late.scores.keys()
    yield Figure("tickets scored in both modes", len(both), at_least=size.transitions)
    yield Figure("scores that differ between modes", sum(sync.scores[t] != late.scores[t] for t in both), at_most=0)
    alone = [t for t in sync.scores.keys() - both if t[:2] not in late.spoiled]
    alone += [t for t in late.scores.keys() - both if t[:2] not in sync.spoiled]
    yield Figure("scored in one mode, in an episode without a fault in the other", len(alone), at_most=0)
    if device == "cuda":
        yield Figure("model calls on the default stream, async", late.on_default_stream, at_most=0)
    if importlib.util.find_spec("stable_baselines3") is None:
        yield Figure("late rewards in SB3's replay buffer", "left out: stable_baselines3 is not installed")
        return
    from tests.soak import soak

    counts = soak(size.soak_steps, place=lambda model: OnDevice(model).to(device))
    yield Figure("SB3: transitions given out", counts["given out"], at_least=size.soak_steps)
    for name in ("lost", "doubled", "misattributed", "sampled wrong"):
        yield Figure(f"SB3: {name}", counts[name], at_most=0)
