"""The pytest plugin: one seed for each test, our wrapper by the mode, and a line of JSON for each test's outcome."""

from __future__ import annotations

import itertools
import json
import os
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding

MODE, SUITE, RESULTS = (os.environ[f"VLP_PEERS_{name}"] for name in ("MODE", "SUITE", "RESULTS"))
EXACT = os.environ["VLP_PEERS_EXACT"].split()
ORDER = ("passed", "skipped", "failed")


def pytest_configure() -> None:
    """Install the hooks before any test is imported."""
    import peer_hooks

    peer_hooks.patch(seeding, "np_random", _seeded)
    peer_hooks.install(MODE, gymnasium_itself=SUITE == "gymnasium")


SEEDS = itertools.count()


def _seeded(original: Any) -> Any:
    """What nobody has seeded, Gymnasium seeds from the system: no two runs would be alike."""
    return lambda seed=None: original(next(SEEDS) if seed is None else seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """The same seed in every mode."""
    import torch
    from peer_painting import ORACLE

    global SEEDS
    SEEDS = itertools.count()
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what the tests draw from)
    torch.manual_seed(seed)
    ORACLE.begin(exact=any(part in item.nodeid for part in EXACT))
    item.stash[outcome] = {"test": item.nodeid, "outcome": "passed", "message": ""}


outcome = pytest.StashKey[dict[str, Any]]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    """Keep the worst outcome of a test's three parts; a wrong reward fails it."""
    from peer_painting import ORACLE

    made: Any = yield
    report = made.get_result()
    if report.when == "call" and ORACLE.wrong:
        report.outcome, report.longrepr = "failed", "\n".join(ORACLE.wrong[:5])
    result = item.stash[outcome]
    if ORDER.index(report.outcome) > ORDER.index(result["outcome"]):
        result.update(outcome=report.outcome, message=_last_line(report))
    if report.when == "teardown":
        counts = {
            "checked": ORACLE.checked,
            "unchecked": ORACLE.unchecked,
            "wrong": len(ORACLE.wrong),
            "trained": ORACLE.trained,
        }
        with open(RESULTS, "a") as file:  # line by line: what has run counts, however the process ends
            file.write(json.dumps({**result, **counts, "trained": ORACLE.trained}) + "\n")


def _last_line(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:600]
