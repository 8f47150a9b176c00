"""The query engine: every frame is encoded once, every window is scored under the ticket it belongs to.

In the mode "sync", `query` answers in the caller's thread. In the mode "async", `submit` returns at once, one worker
thread answers in batches over environments and time, and `poll` takes the answers. Both modes score with the same
function, `answer_batch`.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.batch import answer_batch, split_rows
from vlp_gym.engine.book import QueryBook
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.settings import Mode, Policy, check_settings
from vlp_gym.engine.tickets import Answer, Episode, FrameScore, Request, Ticket, next_env
from vlp_gym.engine.windows import window_indices
from vlp_gym.engine.worker import start_worker, stopped
from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.models.protocol import History, RewardModel

logger = logging.getLogger("vlp_gym")

PAUSE_S = 1.0
Views: TypeAlias = "NDArray[np.uint8] | Sequence[NDArray[np.uint8]]"


class QueryEngine:
    """Scores the newest frames of any number of environments with one reward model.

    Every ticket that was submitted is answered once, or counted: submitted = delivered + stale + failed + cancelled +
    pending, always. If the model raises, the affected episodes are broken, and their later tickets are cancelled.

    Args:
        model: a live reward model, which is put into eval mode and never copied, or a name, folder or hub id for
            `load_reward_model`.
        window: T; None takes the model's.
        history: "sliding" or "prefix", whose memory grows with the episode; None takes the model's.
        device: where the model runs; "auto" leaves a live model where it is, and puts a named one on CUDA if there is
            one.
        truncate: cut an instruction that is over the model's token limit, instead of raising.
        mode: "sync" or "async".
        max_batch: frames in one call of the model, at most ("async").
        max_wait_s: how long the worker waits for a batch to fill, counted from its oldest frame; 0 takes what is there.
        slots: queries that may be pending at once.
        policy: when all slots are taken, "block" waits in `submit`; with "widen_stride" the wrappers skip frames and
            hold the score until there is room (the last frame of an episode always waits).
        timeout_s: how long `submit`, `query` and `flush` wait for the model.
        threads: torch threads of the worker.

    Raises:
        ValueError: for an argument that makes no sense.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel,
        *,
        window: int | None = None,
        history: History | None = None,
        device: str | torch.device = "auto",
        truncate: bool = False,
        mode: Mode = "sync",
        max_batch: int = 32,
        max_wait_s: float = 0.0,
        slots: int = 256,
        policy: Policy = "block",
        timeout_s: float = 60.0,
        threads: int = 1,
    ) -> None:
        check_settings(mode, policy, max_batch, slots, threads, max_wait_s, timeout_s)
        self.model = GuardedModel(model, device=device, truncate=truncate)
        self.window = self.model.model.window if window is None else window
        self.history: History = self.model.model.history if history is None else history
        window_indices(1, self.window, self.history)  # raises if one of them makes no sense
        self.mode, self.policy = mode, policy
        self.max_batch, self.max_wait_s, self.slots = max_batch, max_wait_s, slots
        self.timeout_s, self.threads = timeout_s, threads
        self.on_answer: Callable[[Answer, NDArray[np.uint8], Tensor], None] | None = None
        """Called with each answer that is delivered, its frames ``[C, H, W, 3]`` and their tokens ``[C, K, D]``, from
        whichever thread runs the model. It must be quick, and must not call the engine."""
        self._process = os.getpid()
        self._texts: dict[str, Tensor] = {}
        self._book = QueryBook()
        self._lock = threading.RLock()  # guards the book and what follows
        self._changed = threading.Condition(self._lock)
        self._calling = threading.Lock()  # held while the model runs
        self._asking = threading.RLock()  # held through a call of `submit` in the mode "sync"
        self._closed = False
        self._paused_until_s = 0.0
        self._hurried = self._awaited = 0  # how many wait for all answers, or for room; and for any answer
        self._death: BaseException | None = None
        self._worker: threading.Thread | None = None
        if mode == "async":
            self._worker = start_worker(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> QueryEngine:
        """The same model, the running episodes copied."""
        if self.mode == "async":
            raise TypeError("an engine with mode='async' cannot be copied: its worker thread lives once")
        clone = object.__new__(type(self))
        memo[id(self)] = clone
        memo |= {
            id(self._lock): (lock := threading.RLock()),
            id(self._changed): threading.Condition(lock),
            id(self._calling): threading.Lock(),
            id(self._asking): threading.RLock(),
        }
        for name, value in self.__dict__.items():
            clone.__dict__[name] = copy.deepcopy(value, memo)
        return clone

    def add_env(self) -> int:
        """Take in one more environment; returns the `env` of its tickets."""
        with self._lock:
            env = next_env()
            self._book.episodes[env] = None
            return env

    def encode_text(self, instruction: str) -> Tensor:
        """Encode one checked instruction as tokens, ``[L, D]``; each instruction is encoded once.

        Raises:
            InstructionError: if it is over the model's limit.
            QueryTimeout: if the model is busy for longer than `timeout_s`.
        """
        text = self._texts.get(instruction)
        if text is None:
            where = f"instruction {instruction!r}"
            text = self.exclusively(lambda: self.model.encode_text([instruction], where=where)[0])
            if len(self._texts) >= 1024:  # unbounded instruction sets must not fill memory
                self._texts.clear()
            self._texts[instruction] = text
        return text

    def begin(self, env: int, episode: int, text: Tensor) -> None:
        """Start an episode; the tickets of the episodes before stay open until they are answered."""
        with self._lock:
            self._book.episodes[env] = Episode(episode, text)

    def cancel(self, env: int) -> None:
        """End the running episode of one environment and give up its open tickets.

        Those still in the queue are counted as cancelled; those the model works on will be stale.
        """
        with self._lock:
            self._book.cancel(env)

    def stats(self) -> dict[str, int]:
        """Counts of tickets; submitted = delivered + stale + failed + cancelled + pending, always."""
        with self._lock:
            return self._book.stats()

    def latencies(self) -> dict[str, float]:
        """Seconds from `submit` to the answer: p50 and p99 of the newest 1,000 answers; empty before the first."""
        with self._lock:
            return self._book.latencies()

    def crowded(self, count: int) -> bool:
        """Whether a wrapper should skip these frames: there is no room for them, and the policy is "widen_stride"."""
        pending = len(self._book.pending)
        return self.policy == "widen_stride" and pending > 0 and pending + count > self.slots

    def query(self, tickets: Sequence[Ticket], frames: Sequence[Views]) -> list[FrameScore]:
        """Score the newest frame of each ticket's episode and wait for it, all environments in one batch.

        Args:
            tickets: of running episodes, at most one for each environment.
            frames: one item for each ticket, uint8 ``[C, H, W, 3]``: the C views of the same moment, whose scores are
                averaged. They are copied.

        Raises:
            RuntimeError: if a ticket was already used or belongs to no running episode.
            QueryError: if the model raises, runs out of memory at batch 1, or returns NaN or inf.
            TypeError: if the model returns something of another kind or shape than its protocol says.
            QueryTimeout: if the model does not answer within `timeout_s` ("async").
        """
        self.submit(tickets, frames)
        answers = {answer.ticket: answer for answer in self.flush({ticket.env for ticket in tickets})}
        asked = [answers.pop(ticket, Answer(ticket, None)) for ticket in tickets]
        with self._lock:  # of earlier calls of `submit`
            self._book.put_back(answers.values())
        for answer in asked:
            if answer.error is not None:
                raise answer.error
            if answer.score is None:
                raise QueryError(f"an earlier error has spoiled this episode; begin another ({answer.ticket})")
        return [answer.score for answer in asked if answer.score is not None]

    def submit(
        self, tickets: Sequence[Ticket], frames: Sequence[Views], *, scored: Sequence[bool] | None = None
    ) -> None:
        """Ask for scores; the answers come by `poll`, and so do the errors of the model.

        Arguments and other errors are those of `query`. A ticket of a broken episode is counted as cancelled at
        once. Where ``scored`` says False, the frame is encoded for the windows that come
        later, and the answer is `UNSCORED`.
        """
        self._check_usable()
        if len(frames) != len(tickets) or (
            len(tickets) > 1 and len({ticket.env for ticket in tickets}) != len(tickets)
        ):
            raise ValueError(f"expected one ticket and frame for each env, got {len(frames)} for {list(tickets)}")
        if not tickets:
            return
        scored = scored or [True] * len(tickets)
        if self.mode == "async":
            self._take_in(tickets, frames, scored)
            return
        with self._asking:
            requests = self._take_in(tickets, frames, scored)
            try:
                while batch := self._book.next_batch(math.inf):
                    self._serve(batch)
            except BaseException:  # KeyboardInterrupt
                with self._lock:
                    self._book.queue.clear()
                    self._book.give_up(requests)
                raise

    def _take_in(self, tickets: Sequence[Ticket], frames: Sequence[Views], scored: Sequence[bool]) -> list[Request]:
        """Queue copies of the frames, as soon as there is room."""
        requests = []
        with self._lock:
            pending = self._book.pending
            episodes = list(map(self._book.running, tickets))
            if pending and len(pending) + len(tickets) > self.slots:
                self._wait(lambda: not pending or len(pending) + len(tickets) <= self.slots, tickets)
            now = time.monotonic()
            for ticket, views, episode, asked in zip(tickets, frames, episodes, scored, strict=True):
                requests.append(Request(ticket, np.array(views, np.uint8, ndmin=4), episode, now, asked))
            self._book.enqueue(requests)
            if self._worker is not None:
                self._changed.notify_all()
        return requests

    def poll(self, envs: Collection[int] | None = None, timeout_s: float = 0.0) -> list[Answer]:
        """Take the answers that are there, for some environments or all, in the order of the tickets of each.

        Args:
            envs: whose answers to take.
            timeout_s: how long to wait for the first one, if something is pending.

        Raises:
            QueryError: if the worker thread has died.
        """
        with self._lock:
            if timeout_s > 0.0:
                self._until(lambda: self._book.answered(envs) or not self._book.open(envs), timeout_s, hurry=False)
            answers = self._book.take(envs)
            if not answers and not self._closed:
                self._check_usable()
        return answers

    def flush(self, envs: Collection[int] | None = None, timeout_s: float | None = None) -> list[Answer]:
        """Wait until nothing is pending for these environments, and take all their answers.

        Raises:
            QueryTimeout: if that takes longer than `timeout_s` (None: the engine's own).
            QueryError: if the worker thread has died.
        """
        self.wait(envs, timeout_s)
        return self.poll(envs)

    def wait(self, envs: Collection[int] | None = None, timeout_s: float | None = None) -> None:
        """Wait until nothing is pending for these environments; errors are those of `flush`."""
        with self._lock:
            self._wait(lambda: not self._book.open(envs), self._book.open(envs), timeout_s)

    def pause(self, on: bool) -> None:
        """Begin no batch while this is on, unless somebody waits for an answer or for room.

        Python threads share one interpreter lock: a learner in the main thread is faster if the model works while the
        environment renders, and not while the learner updates. A pause ends by itself after a second.
        """
        with self._lock:
            self._paused_until_s = time.monotonic() + PAUSE_S if on else 0.0
            if not on:
                self._changed.notify_all()

    def close(self, timeout_s: float = 5.0) -> int:
        """Stop the worker; a second call does nothing. A live model stays usable.

        Queries in the queue are cancelled; the one that the model works on gets `timeout_s` to end.

        Returns:
            How many queries were given up; if there are any, a warning is logged too.
        """
        if self._process != os.getpid():
            return 0  # a forked child has no worker to stop
        with self._lock:
            before, self._closed = self._book.stats()["cancelled"], True
            self._book.drop(list(self._book.queue))
            self._changed.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(timeout_s)
        stopped(self)
        with self._lock:
            self._book.give_up(list(self._book.pending.values()))  # the model hangs
            given_up = self._book.stats()["cancelled"] - before
        if given_up:
            logger.warning("the query engine was closed with %d queries in flight, which were given up", given_up)
        return given_up

    def probe(self, text: Tensor) -> FrameScore:
        """Score one black frame: shows which heads the model has, and whether it keeps its protocol.

        Args:
            text: text tokens, ``[L, D]``.
        """
        return split_rows(self.exclusively(lambda: self.model.probe(text)))[0]

    def exclusively(self, function: Callable[[], Any]) -> Any:
        """Call a function that uses the model while nobody else does; some tokenizers cannot be used from two threads.

        Raises:
            QueryTimeout: if the model is busy for longer than `timeout_s`.
        """
        self._check_usable()
        if not self._calling.acquire(timeout=self.timeout_s):
            raise QueryTimeout(f"the reward model is busy for more than {self.timeout_s:g} s")
        try:
            result = function()
            if self.model.device.type == "cuda":
                torch.cuda.current_stream(self.model.device).synchronize()  # the worker reads it on another stream
            return result
        finally:
            self._calling.release()

    def _until(self, done: Callable[[], bool], timeout_s: float, *, hurry: bool) -> bool:
        """Wait, with the lock held; False if it does not come in time. With `hurry`, no batch waits to be filled."""
        deadline = time.monotonic() + timeout_s
        self._hurried += hurry
        self._awaited += not hurry
        try:
            while not done():
                self._check_usable()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.notify_all()
                self._changed.wait(min(left, 0.5))  # in slices: a worker that died does not notify
            return True
        finally:
            self._hurried -= hurry
            self._awaited -= not hurry

    def _wait(self, done: Callable[[], bool], tickets: Sequence[Ticket], timeout_s: float | None = None) -> None:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if not self._until(done, timeout_s, hurry=True):
            raise QueryTimeout(
                f"the reward model did not answer within {timeout_s:g} s; {len(self._book.pending)} queries are "
                f"pending ({tickets[0]})"
            )

    def _check_usable(self) -> None:
        if self._process != os.getpid() and (self.mode == "async" or self.model.device.type == "cuda"):
            raise RuntimeError(
                "this query engine was made in another process: neither its worker thread nor CUDA survives a fork; "
                "make the wrapper in the process that uses it, or start processes with the method 'spawn'"
            )
        if self._closed:
            raise QueryError("the query engine is closed")
        if self._death is not None:  # not `is_alive`, which an interrupt can make lie
            if isinstance(self._death, QueryError):
                raise QueryError("CUDA has failed for good in this process; restart it") from self._death
            raise QueryError("the worker thread of the query engine has died; make a new one") from self._death

    def _serve(self, batch: Sequence[Request]) -> None:
        """Answer a batch, and put what came into the outbox."""
        tokens = None
        try:
            with self._calling:
                answers, tokens = answer_batch(self.model, batch, self.window, self.history)
        except Exception as error:
            answers = [Answer(request.ticket, None, error) for request in batch]
            if "CUDA error" in str(error):  # but for "CUDA out of memory", these stay until the process ends
                self._death = error
        except BaseException:  # the end of the worker, or KeyboardInterrupt
            with self._lock:
                self._book.give_up(batch)
            raise
        with self._lock:
            delivered = self._book.book(batch, answers, time.monotonic())
            if self.on_answer is not None and tokens is not None:
                for number in delivered:
                    self.on_answer(answers[number], batch[number].frames, tokens[number])
            if self._worker is not None or self._hurried or self._awaited:
                self._changed.notify_all()
