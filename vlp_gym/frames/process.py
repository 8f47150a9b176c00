"""What libraries in one process break for each other, and how it is set right; nothing heavy is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

T = TypeVar("T")


def load_triton() -> None:
    """Load Triton's library so that it uses its own LLVM, whether or not Mesa has loaded another one.

    The first ``torch.optim.Adam(...)`` imports Triton. If Mesa (OSMesa, EGL) has drawn before, the names in Triton's
    library would lead to Mesa's LLVM, which crashes the process. What is loaded here is what Python finds later.
    """
    spec = importlib.util.find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder, "_C").glob("libtriton*.so"):
            with suppress(OSError):  # Triton's own import says better what is wrong with it
                ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))


def survive_fork() -> None:
    """From now on a forked child has one torch thread.

    It inherits PyTorch's pool without the pool's threads: with more than one thread, it would wait for them for ever.
    """
    os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def end_by_sigterm() -> None:
    """In a worker process: SIGTERM ends it, also once pygame draws there.

    SDL catches SIGTERM where nobody does. A process that ends by an exception sends it to its workers and waits for
    them: it would wait for ever.
    """
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
        os.environ["SDL_NO_SIGNAL_HANDLERS"] = "1"  # read when SDL starts
        if signal.getsignal(signal.SIGTERM) in (None, signal.SIG_DFL):  # nobody's in Python; it may be SDL's already
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_with_parent() -> None:
    """In a worker process: it ends when its parent does, also where a signal has killed that.

    A worker of a pool would go on with what it has been given, and then wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="vlp-gym-parent", daemon=True).start()


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def submit_all(
    pool: ProcessPoolExecutor, function: Callable[..., T], jobs: Iterable[tuple[Any, ...]]
) -> list[Future[T]]:
    """Submit a call for each tuple of arguments to a pool that is already there.

    Its workers inherit the mask: Ctrl-C is the parent's, even while they import. Making the pool's locks starts the
    tracker of resources, which would lift the mask again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [pool.submit(function, *job) for job in jobs]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers(pool: ProcessPoolExecutor) -> None:
    """Terminate a pool's workers and wait for their end; otherwise it would wait for all running tasks."""
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
