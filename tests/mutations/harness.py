"""Reads damaged and hostile files in a child process, and says what became of each.

Whatever a file holds, reading it must end in a documented refusal, or in content that keeps its contract: in time, in a
gigabyte of memory, and without running anything.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

TIME_S, MEMORY = 20.0, 2**30
PAGE = resource.getpagesize()
BAD = ("wrong", "foreign", "executed", "hang", "memory", "died")


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file. All functions are importable by name: the child process is spawned.

    Attributes:
        make: writes a good original into an empty folder; called once a process.
        mutate: changes a copy of that folder in place, with its hashes made right again, and says what it did.
        read: reads the folder by the public API, as a user does; its result goes to `wrong`.
        wrong: what in accepted content breaks its contract (shapes, ranges, NaN); "" where nothing does.
        refusals: the documented errors.
    """

    make: Callable[[Path], None]
    mutate: Callable[[Path, np.random.Generator], str]
    read: Callable[[Path], Any]
    wrong: Callable[[Any], str]
    refusals: tuple[type[Exception], ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one mutation: "refused", "harmless", or one of BAD."""

    case: int
    mutation: str
    kind: str
    detail: str = ""


def run(target: Target, cases: range, *, seed: int = 0) -> Iterator[Outcome]:
    """Yield the outcome of each case; case i of a seed is the same mutation every time."""
    case = cases.start
    context = multiprocessing.get_context("spawn")
    while case < cases.stop:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, target, range(case, cases.stop), seed), daemon=True)
        child.start()
        theirs.close()
        try:
            while case < cases.stop:
                outcome = _watch(ours, child.pid or 0, case)
                yield outcome
                case += 1
                if outcome.kind in ("hang", "died") or not child.is_alive():
                    break
        finally:
            _kill(child.pid or 0)
            child.join()
            ours.close()


def tally(outcomes: list[Outcome]) -> Counter[str]:
    """How often each kind of outcome came."""
    return Counter(outcome.kind for outcome in outcomes)


def _watch(pipe: Connection, pid: int, case: int) -> Outcome:
    """Wait for the child's "ready", its word on the mutation, then its outcome, each in time."""
    mutation, peak, base = "?", 0, 0
    deadline = time.monotonic() + 120.0  # imports and the original
    while time.monotonic() < deadline:
        try:
            if pipe.poll(0.02):
                word, value = pipe.recv()
                if word == "mutated":
                    mutation, base, deadline = value, _memory(pid), time.monotonic() + TIME_S
                    peak = base  # what it took to make the mutation does not count
                elif word == "outcome":
                    kind, detail = value
                    grown = max(peak, _memory(pid)) - base
                    return Outcome(case, mutation, "memory" if grown > MEMORY else kind, detail or f"{grown >> 20} MiB")
        except EOFError:
            return Outcome(case, mutation, "died", "the process ended")
        peak = max(peak, _memory(pid))
        if mutation != "?" and peak - base > 4 * MEMORY:
            return Outcome(case, mutation, "died", f"{(peak - base) >> 20} MiB")
    return Outcome(case, mutation, "hang", f"no end in {TIME_S:.0f} s")


def _serve(pipe: Connection, target: Target, cases: range, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        original = root / "original"
        original.mkdir()
        target.make(original)
        for case in cases:
            folder = root / f"case-{case}"
            shutil.copytree(original, folder, symlinks=True)
            mutation = target.mutate(folder, np.random.default_rng((seed, case)))
            pipe.send(("mutated", mutation))
            pipe.send(("outcome", _read(target, folder)))
            shutil.rmtree(folder, ignore_errors=True)


def _read(target: Target, folder: Path) -> tuple[str, str]:
    try:
        value = target.read(folder)
        fault = target.wrong(value)
    except target.refusals as error:
        kind, detail = "refused", str(error)
    except MemoryError:
        kind, detail = "memory", "MemoryError"
    except BaseException:
        kind, detail = "foreign", traceback.format_exc(limit=-4)
    else:
        kind, detail = ("wrong", fault) if fault else ("harmless", "")
    executed = list(folder.parent.glob("**/EXECUTED"))  # what a payload would leave
    return ("executed", str(executed)) if executed else (kind, detail)


def _memory(pid: int) -> int:
    """Resident bytes of a process and its children."""
    return sum(map(_resident, _family(pid)))


def _family(pid: int) -> Iterator[int]:
    """A process and its children, and theirs, without those that still are their parent's copy, with all its memory.

    Many times faster than psutil, which looks at every process there is.
    """
    yield pid
    with suppress(OSError):  # it has ended
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() != command:
                    yield from _family(int(child))


def _resident(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _kill(pid: int) -> None:
    try:
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            one.kill()
    except psutil.Error:
        pass
