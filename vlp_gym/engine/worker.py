"""The worker thread of an engine in the mode "async"; this and `engine.py` are the only files with threads here."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from contextlib import nullcontext
from typing import Any

import torch

from vlp_gym.engine.tickets import Request
from vlp_gym.errors import QueryError

IDLE_S = 0.5
"""An idle worker looks this often whether its engine is still in use."""

Engine = Any  # a `QueryEngine`, which imports this file

_at_work: weakref.WeakSet[Any] = weakref.WeakSet()


def start_worker(engine: Engine) -> threading.Thread:
    """Start the thread that answers an engine's queries."""
    ready, before = threading.Event(), torch.get_num_threads()
    worker = threading.Thread(target=_run, args=(weakref.ref(engine), ready), name="vlp_gym-engine", daemon=True)
    _at_work.add(engine)
    worker.start()
    ready.wait(5.0)
    torch.set_num_threads(before)  # the worker's number is now the default of every thread to come
    return worker


def stopped(engine: Engine) -> None:
    """The engine was closed: nothing is left to do when the interpreter goes away."""
    _at_work.discard(engine)


def reopen(engine: Engine) -> None:
    """Undo the `close` of an engine.

    Raises:
        QueryError: if its worker still hangs in the model.
    """
    if engine._worker is not None and engine._worker.is_alive():
        raise QueryError("the query engine is closed, and the reward model still hangs")
    engine._closed = False
    if engine.mode == "async":
        engine._worker = start_worker(engine)


def _run(reference: weakref.ref[Engine], ready: threading.Event) -> None:
    """Answer batches. The engine is held only meanwhile, so that one that nobody uses can be collected."""
    engine = reference()
    if engine is None:
        return
    torch.get_num_threads()  # a thread takes over the default at its first use of torch, which would come later
    torch.set_num_threads(engine.threads)
    ready.set()
    changed, model = engine._changed, engine.model
    on_stream: Any = nullcontext()
    if model.device.type == "cuda":
        on_stream = torch.cuda.stream(torch.cuda.Stream(model.device, priority=0))  # the lowest
    del engine
    while True:
        engine = reference()
        if engine is None:
            return
        try:
            with changed:
                batch = _take_batch(engine)
                if not batch and engine._closed:
                    return
            if batch:
                with on_stream:
                    engine._serve(batch)
        except BaseException as error:
            with changed:
                engine._death = error
                changed.notify_all()
            return
        del batch
        with changed:
            idle = _resting(engine)
            del engine
            if idle:
                changed.wait(IDLE_S)


def _take_batch(engine: Engine) -> list[Request]:
    """What to do next; waits up to `max_wait_s` for a batch to fill. Called with the lock held."""
    if _resting(engine):
        return []
    queue = engine._book.queue
    while queue and not (engine._hurried or engine._closed):
        left = queue[0].since_s + engine.max_wait_s - time.monotonic()
        if left <= 0 or sum(len(request.frames) for request in queue) >= engine.max_batch:
            break
        engine._changed.wait(left)
    batch: list[Request] = engine._book.next_batch(engine.max_batch)
    return batch


def _resting(engine: Engine) -> bool:
    paused = time.monotonic() < engine._paused_until_s and not (engine._hurried or engine._awaited)
    return not engine._closed and (paused or not engine._book.queue)


@atexit.register
def _close_all() -> None:
    """A thread that is inside torch when the interpreter goes away ends the process with an abort."""
    engines = list(_at_work)
    for engine in engines:
        engine.close(timeout_s=0.0)
    deadline = time.monotonic() + 1.5  # together: an exit takes at most 5 s
    for engine in engines:
        if engine._worker is not None:
            engine._worker.join(max(deadline - time.monotonic(), 0.0))
