"""Runs the parts one after the other, each on its own, within a time budget; imports torch only where a part runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.gpu.report import Figure, Outcome, document, settled, table
from tests.gpu.sizes import SIZES

GRACE = 2.5
"""A part is stopped after this multiple of the seconds that it was expected to take."""


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: how it is called in the table.
        function: "module:function"; it takes a `Size` and a device, and gives figures one by one.
        full_s: how long it takes at most in full, on a GPU.
        small_s: how long it takes at most when small, on a CPU.
    """

    name: str
    function: str
    full_s: float
    small_s: float

    def expected_s(self, size: str) -> float:
        """Seconds that must be left for it to begin."""
        return self.full_s if size == "full" else self.small_s


PARTS = (
    Part("equality", "tests.gpu.equality:equality", 75, 30),
    Part("throughput", "tests.gpu.throughput:throughput", 60, 30),
    Part("environment", "tests.gpu.environment:environment", 110, 45),
    Part("memory", "tests.gpu.memory:memory", 50, 20),
    Part("training", "tests.gpu.training:training", 80, 30),
    Part("frames", "tests.gpu.throughput:frames_per_second", 60, 20),
)
"""In the order of their value."""

Event = dict[str, Any]
Launch = Callable[[Part, str, str, float, Callable[[Event], None]], str]
"""(part, size, device, seconds that it may take, what takes its events) -> what went wrong, or ""."""


def in_process(part: Part, size: str, device: str, limit_s: float, note: Callable[[Event], None]) -> str:
    """Run a part here, without a limit; the events are {"machine": facts} and {"figure": a `Figure`'s fields}."""
    try:
        from tests.gpu.devices import machine, torch

        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device; try --size small --device cpu")
        note({"machine": machine(device)})
        module, _, function = part.function.partition(":")
        for figure in getattr(import_module(module), function)(SIZES[size], device):
            note({"figure": asdict(figure)})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_subprocess(part: Part, size: str, device: str, limit_s: float, note: Callable[[Event], None]) -> str:
    """Run a part in a process of its own: a crash, a broken CUDA context or a hang ends that part alone."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as events:
        command = [sys.executable, "-m", "tests.gpu", "--part", part.name, "--size", size, "--device", device]
        process = subprocess.Popen([*command, "--events", events.name], start_new_session=True)
        code: int | None = None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what it has started, such as environments' workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        error = "" if code == 0 else f"its process ended with exit code {code}"
        if code is None:
            error = f"stopped after {limit_s:.0f} s"
        for line in events:
            if not line.endswith("\n"):
                break  # it was stopped while it wrote
            event = json.loads(line)
            error = event.get("error", error)
            note(event)
    return error


def child(name: str, size: str, device: str, events: Path) -> int:
    """What the process of a part does: run it, and append each event to a file; returns the exit status."""
    import torch

    part = next(part for part in PARTS if part.name == name)
    if device == "cpu":
        torch.set_num_threads(1)  # small sizes gain nothing, and lose much where other programs run
    with events.open("a", buffering=1) as file:

        def note(event: Event) -> None:
            file.write(json.dumps(event) + "\n")
            if "figure" in event:
                print("   ", event["figure"]["name"], event["figure"]["value"], event["figure"]["unit"], flush=True)

        error = in_process(part, size, device, 0.0, note)
        if error:
            note({"error": error})
    return 1 if error else 0


def run(
    parts: Sequence[Part],
    size: str,
    device: str,
    out: Path,
    budget_s: float,
    launch: Launch,
    started: float | None = None,
) -> list[Outcome]:
    """Run what fits into the budget, and write ``gpu.json`` and ``gpu.md`` after each part.

    Args:
        parts: in the order in which they are run.
        size: a name of `SIZES`.
        device: "cuda" or "cpu".
        out: folder of the two files, made if missing.
        budget_s: seconds for everything; a part that is expected to take more than what is left is skipped.
        launch: how a part is run.
        started: since when the budget counts, on the monotonic clock; None is now.
    """
    started = time.monotonic() if started is None else started
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    facts: dict[str, Any] = {}
    for number, part in enumerate(parts, 1):
        begun = time.monotonic()
        left, expected = started + budget_s - begun, part.expected_s(size)
        print(f"[{number}/{len(parts)}] {part.name}: at most {expected:.0f} s, {left:.0f} s are left", flush=True)
        if expected > left:
            reason = f"it may take {expected:.0f} s, and {max(left, 0):.0f} s of {budget_s:.0f} s are left"
            outcomes.append(Outcome(part.name, "skipped", reason=reason))
        else:
            figures: list[Figure] = []

            def note(event: Event, figures: list[Figure] = figures) -> None:
                facts.update(event.get("machine", {}))
                if "figure" in event:
                    figures.append(Figure(**event["figure"]))

            error = launch(part, size, device, min(left, GRACE * expected), note)
            outcomes.append(settled(part.name, figures, error, time.monotonic() - begun))
        print(f"    {outcomes[-1].status} {outcomes[-1].reason}".rstrip(), flush=True)
        how = {"size": size, "device": device, "seconds": round(time.monotonic() - started, 1)}
        (out / "gpu.json").write_text(json.dumps(document(how, facts, outcomes), indent=2) + "\n")
        (out / "gpu.md").write_text(table(how, facts, outcomes))
    return outcomes
