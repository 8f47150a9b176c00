"""Another project's own tests: found in a folder of its sources, copied, and run in a process of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.peer_suites.adaptations import EXACT

HOOKS = Path(__file__).parent / "hooks"
ROOT = Path(__file__).parents[2]

MODES = {
    "gymnasium": ("sync", "async", "vector", "inner"),
    "stable_baselines3": ("sync", "async", "vector", "vector-async", "inner"),
    "sb3_contrib": ("sync", "async", "vector", "vector-async", "inner"),
}
VERSION = re.compile(r"^(?:Version: |__version__ = \"|)(\d+\.\d+\.[^\s\"]+)\"?$", re.MULTILINE)


@dataclass(frozen=True)
class Suite:
    """The tests of one project."""

    name: str
    """Of the package, as it is imported."""
    folder: Path
    """Its sources, with `tests` in it."""


def find_suite(folder: Path) -> Suite:
    """The suite in a folder of sources, such as an unpacked sdist or a checkout.

    Raises:
        ValueError: if it is none of those known, has no tests, or is of another version than what is installed.
    """
    names = [name for name in MODES if (folder / name).is_dir()]
    if len(names) != 1 or not (folder / "tests").is_dir():
        raise ValueError(f"expected a folder with tests/ and one of {', '.join(MODES)}, got {folder}")
    name = names[0]
    files = (folder / "PKG-INFO", folder / name / "version.txt", folder / name / "__init__.py")
    found = [match for file in files if file.is_file() for match in VERSION.findall(file.read_text())]
    if not found or found[0] != version(name):
        raise ValueError(
            f"expected the sources of {name} {version(name)}, which is installed, got {(found or ['no version'])[0]}"
        )
    return Suite(name, folder)


def run_suite(
    suite: Suite, mode: str, workplace: Path, *, tests: Sequence[str] = (), only: str = "", timeout_s: int = 120
) -> dict[str, dict[str, Any]]:
    """Run the tests in one mode.

    Args:
        suite: what to run.
        mode: "plain" (a plain wrapper in the place of ours), or one of `MODES`.
        workplace: a folder for the copy and the results; what has run there already is read, and not run again.
        tests: ids of tests; empty: all.
        only: pytest's ``-k``.
        timeout_s: for each test.

    Returns:
        For each test that ran: its ``outcome``, the last line of its error as ``message``, how many rewards were
        ``checked`` and ``wrong``, and hashes of the parameters that were ``trained``.

    Raises:
        RuntimeError: if the run was broken off, or pytest could not begin it.
    """
    results, done = workplace / "results.jsonl", workplace / "done"
    if not done.exists():
        shutil.rmtree(workplace, ignore_errors=True)
        _run(suite, mode, workplace, results, tests or ["tests"], only, timeout_s)
        done.touch()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line.pop("test"): line for line in lines}


def _run(
    suite: Suite, mode: str, workplace: Path, results: Path, tests: Sequence[str], only: str, timeout_s: int
) -> None:
    shutil.copytree(suite.folder / "tests", workplace / "tests")
    for folder in (workplace / "tests", *(path for path in (workplace / "tests").rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()  # else our own package `tests` would be found in its place
    results.touch()
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HOOKS), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "VLP_PEERS_MODE": mode,
        "VLP_PEERS_SUITE": suite.name,
        "VLP_PEERS_RESULTS": str(results.resolve()),
        "VLP_PEERS_EXACT": " ".join(EXACT),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "SDL_VIDEODRIVER": "dummy",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "peer_plugin", "-p", "no:cacheprovider"),
        *("--continue-on-collection-errors", f"--timeout={timeout_s}", "--rootdir=.", "-k", only, *tests),
    ]
    with open(workplace / "log.txt", "w") as log:
        run = subprocess.run(command, cwd=workplace, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    if run.returncode not in (0, 1):  # all have run; some may have failed
        raise RuntimeError(f"{suite.name} {mode}: the run was broken off (status {run.returncode}); see {log.name}")
