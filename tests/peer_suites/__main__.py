"""Runs other projects' own tests over our wrappers and buffers: `python -m tests.peer_suites FOLDER...`.

A folder holds the sources of gymnasium, stable_baselines3 or sb3_contrib in the version that is installed, with their
tests, such as an unpacked sdist or a checkout; nothing is fetched. Every test runs in each mode, with the same seed, in
a copy of the folder:

- plain: a plain wrapper around each environment, which pays what ours must pay, to compare the others with;
- sync: a `VLPRewardWrapper` around each environment;
- async: the same with late rewards, our buffers, and `VLPRewardCallback`;
- vector: `capture_frames`, and a wrapper of the vector environment; vector-async: the same with late rewards;
- inner: a `VLPRewardWrapper` under all other wrappers.

Every frame is painted with a number (`hooks/peer_painting.py`), and every reward that is paid or stored is compared
with it. A test that fails with our wrapper and passes with the plain one, three times, is ours, unless the list of
adaptations has a reason. After each training the parameters are compared with those of the plain run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.peer_suites.suite import MODES, Suite, find_suite, run_suite
from tests.peer_suites.verdict import Verdict, judge

Results = dict[str, dict[str, Any]]


def again(suite: Suite, mode: str, folder: Path, verdict: Verdict, plain: Results, wrapped: Results) -> Verdict:
    """Run twice more what has failed with our wrapper only, in both ways, and keep what failed every time."""
    for attempt in range(2):
        tests = [test for test in verdict.ours if test in plain]
        if not tests:
            break
        for results, kind in ((plain, "plain"), (wrapped, mode)):
            second = run_suite(suite, kind, folder / f"{kind}-{attempt}-again", tests=tests)
            worse = "failed" if kind == "plain" else "passed"
            results.update({test: result for test, result in second.items() if result["outcome"] == worse})
        verdict = judge(suite.name, mode, plain, wrapped)
    return verdict


def report(suite: Suite, mode: str, verdict: Verdict) -> None:
    """Print one line of counts, then what is ours and what was adapted."""
    print(
        f"{suite.name} {mode}: {verdict.passed} passed, {len(verdict.plain)} failed or skipped in plain too, "
        f"{len(verdict.ours)} ours, {len(verdict.adapted)} adapted; "
        f"{verdict.checked} rewards compared, {verdict.wrong} wrong; "
        f"trained alike {verdict.same.total()}, otherwise {dict(verdict.other)}"
    )
    for test, message in verdict.ours.items():
        print(f"  ours: {test}: {message.splitlines()[0] if message else ''}")
    for reason, count in Counter(verdict.adapted.values()).items():
        print(f"  adapted, {count}: {reason}")
    sys.stdout.flush()


def main() -> None:
    """Run and report; the exit status is 1 if anything is ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="sources with tests")
    parser.add_argument("--modes", nargs="*", default=(), help="default: all of the suite")
    parser.add_argument("-k", dest="only", default="", help="pytest's -k")
    parser.add_argument("--keep", type=Path, help="a folder for the copies, logs and results; default: a temporary one")
    options = parser.parse_args()
    ours = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        for suite in [find_suite(folder) for folder in options.folders]:
            folder = place / suite.name
            plain = run_suite(suite, "plain", folder / "plain", only=options.only)
            for mode in options.modes or MODES[suite.name]:
                wrapped = run_suite(suite, mode, folder / mode, only=options.only)
                verdict = judge(suite.name, mode, plain, wrapped)
                verdict = again(suite, mode, folder / f"{mode}-again", verdict, plain, wrapped)
                report(suite, mode, verdict)
                ours += len(verdict.ours)
    raise SystemExit(bool(ours))


if __name__ == "__main__":
    main()
