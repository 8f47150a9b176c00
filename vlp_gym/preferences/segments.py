"""What the agent has done, kept by episode, and the pieces of it that are compared with each other."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.frames.resize import resize_frames
from vlp_gym.rewards.shaping import score_of
from vlp_gym.storage import check_format, read_pair, write_pair

FORMAT = 1


class Span(NamedTuple):
    """Steps ``start`` to ``stop`` - 1 of an episode, counted from 0."""

    episode: int
    start: int
    stop: int


@dataclass(eq=False)
class EpisodeRecord:
    """One episode of S steps. What was seen after a step may come later than the step, or not at all."""

    number: int
    states: list[NDArray[np.float32]] = field(default_factory=list)
    """Before each step."""
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """The environment's own: for scripted teachers and for evaluation."""
    scores: dict[int, float] = field(default_factory=dict)
    """What the reward model pays for the frame after so many steps (0: the reset frame)."""
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """Tokens of those frames, each ``[C, K, D]``; encoded once."""
    frames: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """The frames, each ``[H, W, 3]``."""


@dataclass(frozen=True, eq=False)
class Segments:
    """N segments of at most L steps; shorter ones are padded with zeros at the end.

    Attributes:
        states: float32 ``[N, L, S]``.
        actions: float32 ``[N, L, A]``.
        mask: bool ``[N, L]``, True where a step is real.
        rewards: float32 ``[N, L]``, the environment's own: for scripted teachers and evaluation only.
        spans: where each one is, N of them.
        episodes: the episodes they were cut from, N of them; None for those that a file has brought.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    mask: NDArray[np.bool_]
    rewards: NDArray[np.float32]
    spans: tuple[Span, ...]
    episodes: tuple[EpisodeRecord | None, ...]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, rows: NDArray[Any] | Sequence[int] | slice) -> Segments:
        """Some of them, by a slice or by numbers."""
        numbers = np.arange(len(self))[rows]
        return Segments(
            self.states[numbers],
            self.actions[numbers],
            self.mask[numbers],
            self.rewards[numbers],
            tuple(self.spans[number] for number in numbers),
            tuple(self.episodes[number] for number in numbers),
        )

    @property
    def inputs(self) -> NDArray[np.float32]:
        """States and actions beside each other, float32 ``[N, L, S + A]``."""
        return np.concatenate([self.states, self.actions], axis=2)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Sums of the environment's own rewards, float64 ``[N]``."""
        return np.where(self.mask, self.rewards, 0.0).sum(1, dtype=np.float64)

    @staticmethod
    def join(parts: Sequence[Segments]) -> Segments:
        """All of them, one after the other; of one length L."""
        return Segments(
            np.concatenate([part.states for part in parts]),
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.mask for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            tuple(span for part in parts for span in part.spans),
            tuple(episode for part in parts for episode in part.episodes),
        )


class _Seen(NamedTuple):
    ticket: Ticket
    score: float
    frame: NDArray[np.uint8] | None
    tokens: Tensor | None


class SegmentStore:
    """The newest finished episodes, of any length, and those that run.

    Args:
        length: L, steps of a segment. Of a shorter episode, the whole is a segment.
        episodes: how many finished ones are kept, the newest.
        keep_tokens: keep the frame tokens that `see` gets, for models that look at a whole segment.
        frame_size: keep the frames that `see` gets, for people to look at, as squares of so many pixels; 0 keeps none.

    Raises:
        ValueError: for a length or number below 1.
    """

    def __init__(self, length: int = 50, episodes: int = 100, *, keep_tokens: bool = True, frame_size: int = 0) -> None:
        if length < 1 or episodes < 1:
            raise ValueError(f"length and episodes must be at least 1, got {length} and {episodes}")
        self.length, self.episodes = length, episodes
        self.keep_tokens, self.frame_size = keep_tokens, frame_size
        self._finished: OrderedDict[int, EpisodeRecord] = OrderedDict()
        self._running: dict[int, EpisodeRecord | None] = {}
        """None: of an episode whose beginning or middle is missing, which is left out until it ends."""
        self._tickets: dict[tuple[int, int], EpisodeRecord] = {}
        self._seen: deque[_Seen] = deque()
        self._count = 0

    def __len__(self) -> int:
        return len(self._finished)

    @property
    def numbers(self) -> list[int]:
        """The finished episodes, oldest first."""
        return list(self._finished)

    def add(
        self, env: int, state: NDArray[Any], action: NDArray[Any], reward: float, ticket: Ticket | None = None
    ) -> None:
        """Add one step of an environment; its first begins an episode.

        Args:
            env: which environment.
            state: before the step, ``[S]``.
            action: ``[A]``.
            reward: the environment's own; NaN where there is none.
            ticket: of the step, where a wrapper has its frame looked at.
        """
        if env not in self._running:
            self._running[env] = begun = EpisodeRecord(self._count)
            self._count += 1
            if ticket is not None:
                self._tickets = {key: kept for key, kept in self._tickets.items() if self._is_kept(kept)}
                self._tickets[ticket.env, ticket.episode] = begun
        record = self._running[env]
        if record is None:
            return
        if ticket is not None and (
            ticket.step != len(record.states) + 1 or self._tickets.get((ticket.env, ticket.episode)) is not record
        ):
            self._running[env] = None  # an interrupt, or a training that began in its middle
            return
        record.states.append(np.array(state, np.float32).ravel())
        record.actions.append(np.array(action, np.float32).ravel())
        record.rewards.append(float(reward))

    def end(self, env: int) -> None:
        """The episode of an environment is over, terminated or truncated; without a step, nothing happens."""
        record = self._running.pop(env, None)
        if record is None:
            return
        self._finished[record.number] = record
        while len(self._finished) > self.episodes:
            self._finished.popitem(last=False)
        self._take_in()  # what is kept goes with its episode, also where nobody asks for segments any more

    def forget_running(self) -> None:
        """The environments may have been reset or replaced: what runs will not be finished, and tickets begin anew."""
        self._take_in()
        self._running.clear()
        self._tickets.clear()
        self._seen.clear()

    def places(self, newest: int | None = None) -> int:
        """How many different segments `sample` can draw."""
        records = [self._finished[number] for number in self.numbers[-(newest or 0) :]]
        return sum(max(len(record.states) - self.length, 0) + 1 for record in records)

    def see(self, answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
        """What `QueryEngine.on_answer` is given, in any thread: frames ``[C, H, W, 3]``, tokens ``[C, K, D]``."""
        if answer.score is None:
            return
        score = score_of("progress" if answer.score.progress is not None else "preference", *answer.score)
        kept = tokens.cpu().clone() if self.keep_tokens else None
        self._seen.append(_Seen(answer.ticket, score, frames[:1].copy() if self.frame_size else None, kept))

    def cut(self, spans: Sequence[tuple[int, int, int]]) -> Segments:
        """Cut segments out of finished episodes.

        Args:
            spans: (episode, first step, one past the last step), at most L steps each.

        Raises:
            ValueError: for a span without a step, over L steps, or that leaves its episode.
        """
        self._take_in()
        records, checked = [], [Span(*map(int, span)) for span in spans]
        for span in checked:
            record = self._finished.get(span.episode)
            if record is None:
                raise ValueError(f"{span}: there is no such finished episode; the store has {self.numbers[:1]} and on")
            if not 0 <= span.start < span.stop <= len(record.states):
                raise ValueError(f"{span}: expected steps within the episode's {len(record.states)}, at least one")
            if span.stop - span.start > self.length:
                raise ValueError(f"{span}: expected at most {self.length} steps")
            records.append(record)
        if not records:
            raise ValueError("expected at least one span")
        lengths = np.array([span.stop - span.start for span in checked])

        def padded(name: str) -> NDArray[np.float32]:
            pieces = zip(records, checked, strict=True)
            return np.stack([self._pad(getattr(record, name)[start:stop]) for record, (_, start, stop) in pieces])

        return Segments(
            padded("states"),
            padded("actions"),
            np.arange(self.length) < lengths[:, None],
            padded("rewards"),
            tuple(checked),
            tuple(records),
        )

    def sample(self, count: int, rng: np.random.Generator, *, newest: int | None = None) -> Segments:
        """Draw segments: an episode uniformly, then a place in it uniformly.

        Args:
            count: N.
            rng: where chance comes from.
            newest: only of so many newest episodes: near the current policy.

        Raises:
            ValueError: if no episode is finished, or newest is below 1.
        """
        if newest is not None and newest < 1:
            raise ValueError(f"newest must be at least 1, or None for all, got {newest}")
        numbers = self.numbers[-newest:] if newest else self.numbers
        if not numbers:
            raise ValueError("expected at least one finished episode to draw segments from, got none")
        spans = []
        for number in rng.choice(numbers, count).tolist():
            steps = len(self._finished[number].states)
            start = int(rng.integers(max(steps - self.length, 0) + 1))
            spans.append((number, start, min(start + self.length, steps)))
        return self.cut(spans)

    def save(self, folder: str | Path) -> None:
        """Write the finished episodes to ``segments.json`` and ``segments.safetensors``.

        Raises:
            CheckpointError: if that cannot be done; an earlier pair is intact.
        """
        write_pair(folder, *self.pack(), stem="segments")

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The finished episodes as a JSON document and tensors."""
        self._take_in()
        records = list(self._finished.values())
        tensors: dict[str, Tensor] = {}
        for record in records:
            for name in ("states", "actions", "rewards"):
                tensors[f"{record.number}.{name}"] = torch.from_numpy(np.array(getattr(record, name), np.float32))
            tensors[f"{record.number}.scores"] = torch.tensor(sorted(record.scores.items()), dtype=torch.float64)
            for name, values in (("tokens", record.tokens), ("frames", record.frames)):
                if values:
                    steps = sorted(values)
                    tensors[f"{record.number}.{name}.steps"] = torch.tensor(steps)
                    tensors[f"{record.number}.{name}"] = torch.stack([torch.as_tensor(values[step]) for step in steps])
        settings = {name: getattr(self, name) for name in ("length", "episodes", "keep_tokens", "frame_size")}
        document = {"format": FORMAT, **settings, "count": self._count, "numbers": [r.number for r in records]}
        return document, tensors

    @classmethod
    def load(cls, folder: str | Path) -> SegmentStore:
        """Read what `save` wrote.

        Raises:
            CheckpointError: if it is missing, damaged, or of a newer format.
        """
        return cls.unpack(*read_pair(folder, stem="segments"), folder)

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], folder: str | Path) -> SegmentStore:
        """The inverse of `pack`; the folder is named in errors."""
        check_format(document, FORMAT, "segments", folder)
        names = ("length", "episodes", "keep_tokens", "frame_size")
        store = cls(**{name: document[name] for name in names})
        store._count = document["count"]
        for number in document["numbers"]:
            arrays = {name: tensors[f"{number}.{name}"].numpy() for name in ("states", "actions", "rewards")}
            record = EpisodeRecord(number, list(arrays["states"]), list(arrays["actions"]), arrays["rewards"].tolist())
            record.scores = {int(step): score for step, score in tensors[f"{number}.scores"].tolist()}
            for name, kept in (("tokens", record.tokens), ("frames", record.frames)):
                steps: list[int] = tensors.get(f"{number}.{name}.steps", torch.empty(0)).tolist()
                values = tensors.get(f"{number}.{name}", torch.empty(0))
                rows = values.numpy() if name == "frames" else values
                kept.update(zip(steps, rows, strict=True))
            store._finished[number] = record
        return store

    def _is_kept(self, record: EpisodeRecord) -> bool:
        return record.number in self._finished or record in self._running.values()

    def _pad(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        block = np.asarray(rows, np.float32)
        return np.concatenate([block, np.zeros((self.length - len(block), *block.shape[1:]), np.float32)])

    def _take_in(self) -> None:
        """Put what has been seen where it belongs; drop what belongs to no episode that is kept."""
        early = []
        while self._seen:
            seen = self._seen.popleft()
            env, episode, step = seen.ticket
            record = self._tickets.get((env, episode))
            if record is None:
                # Of an episode that has no step here yet; the reset frame and the first step may be seen before.
                if step <= 1 and episode > max((e for lane, e in self._tickets if lane == env), default=-1):
                    early.append(seen)
                continue
            record.scores[step] = seen.score
            if seen.frame is not None:
                size = (self.frame_size, self.frame_size)
                record.frames[step] = resize_frames(torch.from_numpy(seen.frame), size)[0].numpy().copy()
            if seen.tokens is not None:
                record.tokens[step] = seen.tokens
        self._seen.extendleft(reversed(early))
