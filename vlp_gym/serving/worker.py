"""The one thread that asks the model, in batches over clients; the least that is needed of threads is here."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from vlp_gym.serving.answer import Answer, Answerer
from vlp_gym.serving.wire import Ask

BATCH_BYTES = 32 << 20  # of the frames of a batch
GATHERING = 0.05  # of the time of the last batch: how long to wait for those who were in it
Done = Callable[[Answer | Exception], None]


class Busy(Exception):
    """More questions wait than the worker takes."""


class Worker:
    """Answers questions in the order in which they come, those that wait together in one batch.

    Environments ask again when they have their rewards. Without a moment of waiting the first of them would always go
    alone, and all others after it, so that one batch becomes two.

    Args:
        answerer: the model.
        max_batch: rows of a batch, unless one question has more.
        max_waiting: questions that may wait.
        threads: number of torch's threads; None leaves it as it is.
    """

    def __init__(self, answerer: Answerer, max_batch: int, max_waiting: int, threads: int | None = None) -> None:
        self.answerer, self.max_batch, self.max_waiting, self.threads = answerer, max_batch, max_waiting, threads
        self.batches = self.answered = 0
        self._queue: deque[tuple[Ask, Done]] = deque()
        self._changed = threading.Condition()
        self._expected, self._gathering_s = 0, 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="vlp-gym-serve", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, done: Done) -> None:
        """Ask a question; `done` is called with its answer, from the worker's thread.

        Raises:
            Busy: too many wait, or the worker was stopped.
        """
        with self._changed:
            if self._stopped or len(self._queue) >= self.max_waiting:
                raise Busy("too many questions wait; ask again soon")
            self._queue.append((ask, done))
            self._changed.notify()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Drop the questions that wait, and wait for the batch in the model; a second call does nothing."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        while batch := self._take():
            since = time.monotonic()
            answers = self.answerer.answer([ask for ask, _ in batch])
            self._gathering_s = GATHERING * (time.monotonic() - since)
            self._expected = len(batch) + len(self._queue)  # before the first can ask again
            self.batches += 1
            self.answered += len(batch)
            for (_, done), answer in zip(batch, answers, strict=True):
                done(answer)

    def _take(self) -> list[tuple[Ask, Done]]:
        """The oldest questions that fit into a batch, at least one; none after `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped)
            self._changed.wait_for(self._is_gathered, self._gathering_s)
            batch: list[tuple[Ask, Done]] = []
            rows = size = 0
            while self._queue:
                ask = self._queue[0][0]
                rows += _rows(ask)
                size += sum(frame.numel() for frame in ask.frames.values())
                if batch and (rows > self.max_batch or size > BATCH_BYTES):
                    break
                batch.append(self._queue.popleft())
            return batch

    def _is_gathered(self) -> bool:
        """Whether all who were in the last batch, or came during it, wait, or as many as a batch takes."""
        full = sum(_rows(ask) for ask, _ in self._queue) >= self.max_batch
        return self._stopped or full or len(self._queue) >= self._expected


def _rows(ask: Ask) -> int:
    return max(0 if ask.windows is None else len(ask.windows), len(ask.frames))
