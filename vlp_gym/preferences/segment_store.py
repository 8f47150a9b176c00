"""The agent's newest episodes, from which segments are cut."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.errors import CheckpointError
from vlp_gym.frames.resize import resize_frames
from vlp_gym.preferences.segments import EpisodeRecord, Segments, Span
from vlp_gym.rewards.ledger import STEPS_OF_ITS_OWN
from vlp_gym.rewards.shaping import score_of
from vlp_gym.schema import FLOATS, Count, Document, Positive, Spec, check_tensors
from vlp_gym.storage import Packed

FORMAT = 1
MAX_LENGTH, MAX_FRAME_SIZE = 10_000, 4_096  # what a saved store may ask memory for
_STEPS = ("states", "actions", "rewards", "values")
_SETTINGS = ("length", "episodes", "keep_tokens", "frame_size")


class _Saved(Document):
    format: Literal[1]
    length: Annotated[int, Field(ge=1, le=MAX_LENGTH)]
    episodes: Positive
    keep_tokens: bool
    frame_size: Annotated[int, Field(ge=0, le=MAX_FRAME_SIZE)]
    count: Count
    numbers: list[Count]


class SegmentStore(Packed):
    """Stores the newest finished episodes, of any length, and the running ones.

    Args:
        length: L, steps in a segment; an episode shorter than that is one segment.
        episodes: number of finished episodes kept.
        keep_tokens: store the frame tokens given to `on_answer`, for models that look at a whole segment.
        frame_size: side length in pixels of the stored square frames, for people who label; 0 stores none.

    Raises:
        ValueError: for a length or number of episodes below 1, or a length or frame size that is too large.
    """

    stem = "segments"

    def __init__(self, length: int = 50, episodes: int = 100, *, keep_tokens: bool = True, frame_size: int = 0) -> None:
        if length < 1 or episodes < 1:
            raise ValueError(f"length and episodes must be at least 1, got {length} and {episodes}")
        if length > MAX_LENGTH or not 0 <= frame_size <= MAX_FRAME_SIZE:
            raise ValueError(
                f"length and frame_size must be at most {MAX_LENGTH:,} steps and {MAX_FRAME_SIZE:,} pixels, "
                f"got {length} and {frame_size}"
            )
        self.length, self.episodes = length, episodes
        self.keep_tokens, self.frame_size = keep_tokens, frame_size
        self._finished: OrderedDict[int, EpisodeRecord] = OrderedDict()
        self._running: dict[int, EpisodeRecord | None] = {}
        """None while an episode runs whose beginning or middle is missing; it is left out."""
        self._left_out: dict[int, int] = {}
        """How many episodes of an environment were left out, in a row."""
        self._tickets: dict[tuple[int, int], EpisodeRecord] = {}
        self._seen: deque[tuple[Ticket, float, NDArray[np.uint8] | None, Tensor | None]] = deque()
        """Answers that are not in an episode yet: ticket, score, frame and tokens."""
        self._count = 0

    def __len__(self) -> int:
        return len(self._finished)

    @property
    def numbers(self) -> list[int]:
        """The finished episodes, oldest first."""
        return list(self._finished)

    def add(
        self,
        env: int,
        state: NDArray[Any],
        action: NDArray[Any],
        reward: float,
        ticket: Ticket | None = None,
        value: float = float("nan"),
    ) -> None:
        """Add one step of an environment; its first begins an episode.

        Args:
            env: number of the environment.
            state: before the step, ``[S]``.
            action: ``[A]``.
            reward: the environment's own; NaN if there is none.
            ticket: the step's ticket, if a reward model scores its frame.
            value: what a judge says of the state after the step.
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
            self._running[env] = None  # after an interrupt, or because training began in its middle
            self._left_out[env] = self._left_out.get(env, 0) + 1
            if self._left_out[env] == 5:
                raise ValueError(f"{STEPS_OF_ITS_OWN} ({ticket})")
            return
        record.states.append(np.array(state, np.float32).ravel())
        record.actions.append(np.array(action, np.float32).ravel())
        record.rewards.append(float(reward))
        record.values.append(float(value))

    def end(self, env: int) -> None:
        """End the episode of an environment, terminated or truncated; without a step, nothing happens."""
        record = self._running.pop(env, None)
        if record is None:
            return
        self._left_out.pop(env, None)
        self._finished[record.number] = record
        while len(self._finished) > self.episodes:
            self._finished.popitem(last=False)
        self._take_in()  # even if no segments are drawn any more, what came does not pile up

    def put(
        self,
        states: NDArray[Any],
        actions: NDArray[Any],
        rewards: NDArray[Any],
        frames: Mapping[int, NDArray[np.uint8]] | None = None,
    ) -> int:
        """Add a finished episode that was recorded elsewhere; returns its number.

        Args:
            states: before each of its S steps, ``[S, ...]``.
            actions: ``[S, A]``.
            rewards: the environment's own, ``[S]``.
            frames: number of steps before a frame to the frame, uint8 ``[H, W, 3]``; not stored with frame_size 0.

        Raises:
            ValueError: there is no step, or the numbers of states, actions and rewards differ.
        """
        counts = len(states), len(actions), len(rewards)
        if not counts[0] or len(set(counts)) > 1:
            raise ValueError(f"expected one state, action and reward for each of 1 or more steps, got {counts}")
        env = min(self._running, default=0) - 1  # of no environment
        for state, action, reward in zip(states, actions, rewards, strict=True):
            self.add(env, state, action, float(reward))
        record = self._running[env]
        assert record is not None
        if self.frame_size:
            for step, frame in (frames or {}).items():
                record.frames[step] = self._resized(frame)
        self.end(env)
        return record.number

    def steps(self, number: int) -> int:
        """Number of steps of a finished episode."""
        return len(self._finished[number].states)

    def forget_running(self, env: int | None = None) -> None:
        """Drop the running episodes: the environments may have been reset or replaced, and tickets start again.

        Args:
            env: only this environment's, which was reset before its episode was over.
        """
        self._take_in()
        if env is not None:
            self._running.pop(env, None)
            self._left_out.pop(env, None)
            return
        self._running.clear()
        self._left_out.clear()
        self._tickets.clear()
        self._seen.clear()

    def places(self, newest: int | None = None) -> int:
        """Number of different segments that `sample` can draw."""
        records = [self._finished[number] for number in self.numbers[-(newest or 0) :]]
        return sum(max(len(record.states) - self.length, 0) + 1 for record in records)

    def on_answer(self, answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
        """Store a scored answer of a `QueryEngine` (set as its ``on_answer``), called in any thread.

        The frames are uint8 ``[C, H, W, 3]``, of which the first camera's is stored, and the tokens ``[C, K, D]``.
        """
        if answer.score is None:
            return
        score = score_of("progress" if answer.score.progress is not None else "preference", *answer.score)
        frame = frames[:1].copy() if self.frame_size else None
        self._seen.append((answer.ticket, score, frame, tokens.cpu().clone() if self.keep_tokens else None))

    def cut(self, spans: Sequence[tuple[int, int, int]]) -> Segments:
        """Cut segments out of finished episodes.

        Args:
            spans: (episode, first step, one past the last step), 1 to L steps each.

        Raises:
            ValueError: without a span, or for one of another length, or outside of its episode.
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
        pieces = list(zip(records, checked, strict=True))
        states, actions, rewards, values = (
            np.stack([self._pad(getattr(record, name)[start:stop]) for record, (_, start, stop) in pieces])
            for name in _STEPS
        )
        mask = np.arange(self.length) < np.array([[span.stop - span.start] for span in checked])
        return Segments(states, actions, mask, rewards, tuple(checked), tuple(records), values)

    def sample(self, count: int, rng: np.random.Generator, *, newest: int | None = None) -> Segments:
        """Draw segments: an episode uniformly, then its first step uniformly.

        Args:
            count: N.
            rng: random generator.
            newest: number of newest episodes to draw from, near the current policy; None draws from all.

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

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The finished episodes as a JSON document and tensors."""
        self._take_in()
        tensors: dict[str, Tensor] = {}
        for record in self._finished.values():
            for name in _STEPS if np.isfinite(record.values).any() else _STEPS[:3]:
                tensors[f"{record.number}.{name}"] = torch.from_numpy(np.array(getattr(record, name), np.float32))
            scores = torch.tensor(sorted(record.scores.items()), dtype=torch.float64)
            tensors[f"{record.number}.scores"] = scores.reshape(-1, 2)
            for name, values in (("tokens", record.tokens), ("frames", record.frames)):
                if values:
                    steps = sorted(values)
                    tensors[f"{record.number}.{name}.steps"] = torch.tensor(steps)
                    tensors[f"{record.number}.{name}"] = torch.stack([torch.as_tensor(values[step]) for step in steps])
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {"format": FORMAT, **settings, "count": self._count, "numbers": self.numbers}, tensors

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], where: str | Path) -> SegmentStore:
        """The inverse of `pack`; `where` is named in errors."""
        saved = _Saved.parse(document, where)
        _check_episodes(saved, tensors, where)
        store = cls(**{name: getattr(saved, name) for name in _SETTINGS})
        store._count = saved.count
        for number in saved.numbers:
            states, actions, rewards = (tensors[f"{number}.{name}"].numpy() for name in _STEPS[:3])
            values = tensors.get(f"{number}.values", torch.full((len(rewards),), torch.nan)).tolist()
            record = EpisodeRecord(number, list(states), list(actions), rewards.tolist(), values)
            record.scores = {int(step): score for step, score in tensors[f"{number}.scores"].tolist()}
            for name, kept in (("tokens", record.tokens), ("frames", record.frames)):
                steps: list[int] = tensors.get(f"{number}.{name}.steps", torch.empty(0)).tolist()
                stored = tensors.get(f"{number}.{name}", torch.empty(0))
                rows = stored.numpy() if name == "frames" else stored
                kept.update(zip(steps, rows, strict=True))
            store._finished[number] = record
        return store

    def _is_kept(self, record: EpisodeRecord) -> bool:
        return record.number in self._finished or record in self._running.values()

    def _resized(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of a frame ``[H, W, 3]`` in the stored size."""
        size = (self.frame_size, self.frame_size)
        return np.array(resize_frames(torch.from_numpy(frame)[None], size)[0].numpy())

    def _pad(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        block = np.asarray(rows, np.float32)
        return np.concatenate([block, np.zeros((self.length - len(block), *block.shape[1:]), np.float32)])

    def _take_in(self) -> None:
        """Move answers to their episodes; drop those of no stored episode."""
        early = []
        while self._seen:
            seen = self._seen.popleft()
            (env, episode, step), score, frame, tokens = seen
            record = self._tickets.get((env, episode))
            if record is None:
                # The answers to a reset frame and a first step may come before `add` begins the episode.
                if step <= 1 and episode > max((e for place, e in self._tickets if place == env), default=-1):
                    early.append(seen)
                continue
            record.scores[step] = score
            if frame is not None:
                record.frames[step] = self._resized(frame[0])
            if tokens is not None:
                record.tokens[step] = tokens
        self._seen.extendleft(reversed(early))


def _check_episodes(saved: _Saved, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Raise CheckpointError unless the tensors are those of the saved episodes."""
    numbers = saved.numbers
    if len(set(numbers)) < len(numbers) or len(numbers) > saved.episodes or max(numbers, default=-1) >= saved.count:
        raise CheckpointError(
            f"{where}: numbers: expected at most {saved.episodes} different ones below {saved.count}, "
            f"got {len(numbers)} up to {max(numbers)}"
        )
    table: dict[str, Spec] = {}
    for number in numbers:
        table |= {
            f"{number}.states": Spec(torch.float32, (f"T{number}", "S")),
            f"{number}.actions": Spec(torch.float32, (f"T{number}", "A")),
            f"{number}.rewards": Spec(torch.float32, (f"T{number}",), nan=True),
            f"{number}.scores": Spec(torch.float64, (f"scores of {number}", 2)),
        }
        if f"{number}.values" in tensors:
            table[f"{number}.values"] = Spec(torch.float32, (f"T{number}",), nan=True)
        for name, dtypes, shape in (
            ("tokens", FLOATS, ("C", "K", "D")),
            ("frames", torch.uint8, (saved.frame_size, saved.frame_size, 3)),
        ):
            if f"{number}.{name}" in tensors or f"{number}.{name}.steps" in tensors:
                table[f"{number}.{name}.steps"] = Spec(torch.int64, (f"{name} of {number}",))
                table[f"{number}.{name}"] = Spec(dtypes, (f"{name} of {number}", *shape))
    sizes = check_tensors(tensors, table, where)
    for number in numbers:
        if not (last := sizes[f"T{number}"]):
            raise CheckpointError(f"{where}: {number}.states: expected an episode of at least one step")
        steps = {name: tensors.get(f"{number}.{name}.steps") for name in ("tokens", "frames")}
        for name, places in {"scores": tensors[f"{number}.scores"][:, 0], **steps}.items():
            if places is not None and len(places):
                rising = bool((places[1:] > places[:-1]).all()) and bool((places == places.round()).all())
                if not rising or places[0] < 0 or places[-1] > last:
                    raise CheckpointError(f"{where}: {number}.{name}: expected rising steps from 0 to {last}")
