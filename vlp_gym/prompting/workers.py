"""Concurrent questions in threads that block neither Ctrl-C nor the end of the process."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

EXIT_S = 1.0  # how long an exit waits for all threads together


class Abandoned(Exception):
    """The caller no longer waits for this answer."""


class _Worker(threading.Thread):
    """A daemon thread that starts nothing new once `stop` is set."""

    def __init__(self, work: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(target=work, name="vlp-gym-prompt", daemon=True)
        self.stop = stop


def concurrently(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """Apply a function to items with `workers` threads; results are in the order of the items.

    The first error is raised at once, as is Ctrl-C. Running calls then continue in the background until their next
    `pause` or `leave_if_abandoned`; waiting items are dropped.

    >>> concurrently(abs, [-1, 2, -3], 2)
    [1, 2, 3]
    """
    items = list(items)
    if workers <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, list[Result], BaseException | None]] = SimpleQueue()
    stop = threading.Event()
    for number in range(len(items)):
        todo.put(number)

    def work() -> None:
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((number, [function(items[number])], None))
            except BaseException as error:
                done.put((number, [], error))  # before `stop`, or another thread's Abandoned could come first
                stop.set()

    results: dict[int, Result] = {}
    try:
        for _ in range(min(workers, len(items))):
            _Worker(work, stop).start()
        while len(results) < len(items):
            number, result, error = done.get()
            if error is not None:
                raise error
            results[number] = result[0]
    finally:
        stop.set()
    return [results[number] for number in range(len(items))]


def leave_if_abandoned() -> None:
    """Raise `Abandoned` in a thread of `concurrently` whose caller is gone; elsewhere do nothing."""
    worker = threading.current_thread()
    if isinstance(worker, _Worker) and worker.stop.is_set():
        raise Abandoned


def pause(seconds: float) -> None:
    """Sleep; in a thread of `concurrently`, raise `Abandoned` as soon as the caller is gone."""
    worker = threading.current_thread()
    if not isinstance(worker, _Worker):
        time.sleep(seconds)
        return
    worker.stop.wait(seconds)
    leave_if_abandoned()


@atexit.register
def _stop_all() -> None:
    """Stop all threads at exit: one still inside torch then would abort the process."""
    workers = [thread for thread in threading.enumerate() if isinstance(thread, _Worker)]
    for worker in workers:
        worker.stop.set()
    deadline = time.monotonic() + EXIT_S
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0.0))
