"""Several questions at a time, by threads that nobody has to wait for: neither Ctrl-C nor the end of the process."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

EXIT_S = 1.0  # how long an exit waits for them, together


class Abandoned(Exception):
    """Nobody waits for this answer any more."""


class _Worker(threading.Thread):
    """A thread that ends with the process, and asks nothing new once `stop` is set."""

    def __init__(self, work: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(target=work, name="vlp-gym-prompt", daemon=True)
        self.stop = stop


def concurrently(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """Results in the order of the items, of which `workers` are in work at a time.

    The first error in time is raised at once, as is Ctrl-C. What is in work then goes on, unheard, up to its next
    `pause` or `leave_if_abandoned`; what has not been begun never is.

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
                done.put((number, [], error))  # before `stop`: else another's Abandoned could come first
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
    """In a thread of `concurrently` whose caller has gone, raise `Abandoned`; elsewhere nothing."""
    worker = threading.current_thread()
    if isinstance(worker, _Worker) and worker.stop.is_set():
        raise Abandoned


def pause(seconds: float) -> None:
    """Sleep, in a thread of `concurrently` no longer than its caller waits; see `leave_if_abandoned`."""
    worker = threading.current_thread()
    if not isinstance(worker, _Worker):
        time.sleep(seconds)
        return
    worker.stop.wait(seconds)
    leave_if_abandoned()


@atexit.register
def _stop_all() -> None:
    """A thread that is inside torch when the interpreter goes away ends the process with an abort."""
    workers = [thread for thread in threading.enumerate() if isinstance(thread, _Worker)]
    for worker in workers:
        worker.stop.set()
    deadline = time.monotonic() + EXIT_S
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0.0))
