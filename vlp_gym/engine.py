"""The query engine: every frame is encoded once, every window is scored under the ticket it belongs to.

Only the mode "sync" exists: `QueryEngine.query` returns when the scores are there. The mode "async" will live
in this file too, with the only threads of the package; tickets and accounting are already as it needs them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.errors import QueryError
from vlp_gym.models.base import History, RewardModel, Scores
from vlp_gym.models.guarded import GuardedModel
from vlp_gym.windows import window_indices


@dataclass(frozen=True)
class Ticket:
    """Names one transition for ever: the step that led to a frame; step 0 is the reset frame."""

    env: int
    episode: int
    step: int

    def __str__(self) -> str:
        return f"env {self.env}, episode {self.episode}, step {self.step}"


@dataclass(frozen=True)
class FrameScore:
    """What the model says of the newest frame of an episode.

    Attributes:
        preference: f(v | l), any finite number.
        progress: in [0, 1], or None if the model has no such head.
        relevance: logit that the video shows the instructed task, or None.
    """

    preference: float
    progress: float | None
    relevance: float | None


class TokenCache:
    """Frame tokens of one running episode, each ``[K, D]``, numbered from 0.

    Args:
        limit: how many of the newest are kept; None keeps the whole episode (the block doubles as it fills).
    """

    def __init__(self, limit: int | None) -> None:
        self.total = 0
        self._limit = limit
        self._block: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenCache:
        clone = copy.copy(self)
        clone._block = None if self._block is None else self._block.clone()
        return clone

    def clear(self) -> None:
        """Forget all tokens; the memory is kept for the next episode."""
        self.total = 0

    def append(self, tokens: Tensor) -> None:
        """Add the tokens of the next frame, ``[K, D]``."""
        if self._block is None:
            self._block = tokens.new_empty((self._limit or 64, *tokens.shape))
        elif self._limit is None and self.total == len(self._block):
            self._block = torch.cat([self._block, torch.empty_like(self._block)])
        self._block[self.total % len(self._block)] = tokens
        self.total += 1

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Copies of the tokens with these numbers, ``[T, K, D]``."""
        if self._block is None:
            raise IndexError("no frame was encoded yet")
        return self._block[torch.from_numpy(indices % len(self._block)).to(self._block.device)]


@dataclass
class _Episode:
    """The running episode of one environment."""

    tokens: TokenCache
    text: Tensor | None = None
    number: int = -1
    step: int = -1


class QueryEngine:
    """Scores the newest frames of any number of environments with one reward model.

    Args:
        model: a live reward model; it is put into eval mode and never copied.
        window: T; None takes the model's.
        history: "sliding" or "prefix"; None takes the model's. The memory of "prefix" grows with the episode: one
            frame's tokens a frame.
        device: "auto" leaves the model where it is; anything else moves it.
        truncate: cut an instruction that is over the model's token limit, instead of raising.
        mode: only "sync".

    Raises:
        ValueError: for a window, history or mode that does not exist.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        window: int | None = None,
        history: History | None = None,
        device: str | torch.device = "auto",
        truncate: bool = False,
        mode: str = "sync",
    ) -> None:
        check_mode(mode)
        self.window = model.window if window is None else window
        self.history: History = model.history if history is None else history
        window_indices(1, self.window, self.history)  # raises if one of them makes no sense
        self.model = GuardedModel(model, device=device, truncate=truncate)
        self._episodes: list[_Episode] = []
        self._pending: set[Ticket] = set()
        self._counts = {"submitted": 0, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 0}

    def add_env(self) -> int:
        """Take in one more environment; returns the `env` of its tickets."""
        self._episodes.append(_Episode(TokenCache(self.window if self.history == "sliding" else None)))
        return len(self._episodes) - 1

    def encode_text(self, instruction: str) -> Tensor:
        """Encode one checked instruction as tokens, ``[L, D]``."""
        return self.model.encode_text(instruction, where=f"instruction {instruction!r}")

    def begin(self, env: int, episode: int, text: Tensor) -> None:
        """Start an episode: what the environment had before is forgotten, and its open tickets are cancelled."""
        self.cancel(env)
        state = self._episodes[env]
        state.tokens.clear()
        state.text, state.number, state.step = text, episode, -1

    def cancel(self, env: int) -> None:
        """End the running episode of one environment and give up its open tickets."""
        self._settle([ticket for ticket in self._pending if ticket.env == env], "cancelled")
        self._episodes[env].text = None

    def stats(self) -> dict[str, int]:
        """Counts of tickets; submitted = delivered + stale + failed + cancelled + pending, always."""
        return {**self._counts, "pending": len(self._pending)}

    def query(self, tickets: Sequence[Ticket], frames: Sequence[NDArray[np.uint8]]) -> list[FrameScore]:
        """Score the newest frame of each ticket's episode, all environments in one batch.

        Args:
            tickets: at most one for each environment, of its running episode, in the order of its steps.
            frames: one for each ticket, uint8 ``[H, W, 3]``, all of one size; they are copied.

        Raises:
            RuntimeError: if a ticket was already used or belongs to no running episode.
            QueryError: if the model raises, runs out of memory at batch 1, or returns NaN or inf.
            TypeError: if the model returns something of another kind or shape than its protocol says.
        """
        for ticket in tickets:
            state = self._episodes[ticket.env]
            if state.text is None or ticket.episode != state.number or ticket.step <= state.step:
                raise RuntimeError(f"the ticket was already used or belongs to no running episode ({ticket})")
        if len({ticket.env for ticket in tickets}) != len(tickets) or len(frames) != len(tickets):
            raise ValueError(f"expected one ticket and frame for each env, got {len(frames)} for {list(tickets)}")
        self._counts["submitted"] += len(tickets)
        self._pending.update(tickets)
        try:
            scores = self._answer(tickets, frames)
        except Exception:
            self._settle(tickets, "failed")
            raise
        except BaseException:  # KeyboardInterrupt
            self._settle(tickets, "cancelled")
            raise
        self._settle(tickets, "delivered")
        return scores

    def probe(self, text: Tensor) -> FrameScore:
        """Score one black frame: shows which heads the model has, and whether it keeps its protocol.

        Args:
            text: text tokens, ``[L, D]``.
        """
        where = "first call, on a black frame"
        frames = torch.zeros((1, *self.model.model.frame_size, 3), dtype=torch.uint8)
        tokens = self.model.encode_frames(frames, where=where)
        mask = torch.ones((1, 1), dtype=torch.bool, device=self.model.device)
        return _rows(self.model.score(tokens[:, None], text[None], mask, where=where), [where])[0]

    @torch.inference_mode()
    def _answer(self, tickets: Sequence[Ticket], frames: Sequence[NDArray[np.uint8]]) -> list[FrameScore]:
        where = str(tickets[0]) if len(tickets) == 1 else f"{len(tickets)} envs, the first: {tickets[0]}"
        states = [self._episodes[ticket.env] for ticket in tickets]
        encoded = self.model.encode_frames(torch.from_numpy(np.stack(frames)), where=where)
        for ticket, state, tokens in zip(tickets, states, encoded, strict=True):
            state.step = ticket.step
            state.tokens.append(tokens)
        windows = [window_indices(state.tokens.total, self.window, self.history) for state in states]
        tokens = torch.stack([state.tokens.take(i) for state, (i, _) in zip(states, windows, strict=True)])
        mask = torch.from_numpy(np.stack([mask for _, mask in windows])).to(self.model.device)
        texts = [state.text for state in states if state.text is not None]
        text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)  # a copy; padding is zeros, as the models' own
        return _rows(self.model.score(tokens, text, mask, where=where), [str(ticket) for ticket in tickets])

    def _settle(self, tickets: Sequence[Ticket], outcome: str) -> None:
        self._pending.difference_update(tickets)
        self._counts[outcome] += len(tickets)


def check_mode(mode: str) -> None:
    """Raise ValueError unless the mode exists."""
    if mode == "async":
        raise ValueError("mode='async' is not there yet; use mode='sync'")
    if mode != "sync":
        raise ValueError(f"mode must be 'sync', got {mode!r}")


def _rows(scores: Scores, where: Sequence[str]) -> list[FrameScore]:
    """Split a batch into plain floats, checked to be finite; the progress is that of the last frame."""
    progress = None if scores.progress is None else scores.progress[:, -1]
    heads: dict[str, list[Any]] = {}
    for name, values in (("preference", scores.preference), ("progress", progress), ("relevance", scores.relevance)):
        heads[name] = [None] * len(where) if values is None else values.tolist()
        for value, place in zip(heads[name], where, strict=True):
            if value is not None and not math.isfinite(value):
                raise QueryError(f"the reward model gave the {name} {value}, which no reward may have ({place})")
    return [FrameScore(*row) for row in zip(*heads.values(), strict=True)]
