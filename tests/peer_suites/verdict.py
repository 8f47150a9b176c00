"""Whose fault a failing test is: compared with a plain wrapper in the place of ours, and with the list of
adaptations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tests.peer_suites.adaptations import ADAPTATIONS, Adaptation


@dataclass
class Verdict:
    """One suite in one mode."""

    passed: int = 0
    plain: list[str] = field(default_factory=list)
    """Failed with a plain wrapper in the place of ours too, or were skipped."""
    ours: dict[str, str] = field(default_factory=dict)
    """Failed with our wrapper only: test and message."""
    adapted: dict[str, str] = field(default_factory=dict)
    """The same, where the list has a reason: test and reason."""
    same: Counter[str] = field(default_factory=Counter)
    """Trainings by algorithm that ended with the parameters of the other run, to the bit."""
    other: Counter[str] = field(default_factory=Counter)
    """Those that did not."""
    checked: int = 0
    """Rewards that were compared with the paint."""
    wrong: int = 0


def find_adaptation(suite: str, mode: str, test: str, message: str) -> Adaptation | None:
    """The entry of the list for this failure."""
    for adaptation in ADAPTATIONS:
        fits = suite in adaptation.suites and (mode in adaptation.modes or not adaptation.modes)
        named = fits and any(fnmatchcase(test, pattern) for pattern in adaptation.tests)
        if named and re.search(adaptation.error, message):
            return adaptation
    return None


def judge(
    suite: str, mode: str, plain: Mapping[str, Mapping[str, Any]], wrapped: Mapping[str, Mapping[str, Any]]
) -> Verdict:
    """Compare the two runs; what ran in one alone has not finished in the other."""
    verdict = Verdict(
        checked=sum(result["checked"] for result in wrapped.values()),
        wrong=sum(result["wrong"] for result in wrapped.values()),
    )
    for test, alone in plain.items():
        result = wrapped.get(test, {"outcome": "failed", "message": "did not finish", "wrong": 0})
        if alone["outcome"] != "passed":
            verdict.plain.append(test)
        elif result["outcome"] == "passed":
            verdict.passed += 1
            for one, two in zip(alone["trained"], result["trained"], strict=False):
                (verdict.same if one == two else verdict.other)[one.partition(" ")[0]] += 1
        else:
            adaptation = None if result["wrong"] else find_adaptation(suite, mode, test, result["message"])
            if adaptation is None:
                verdict.ours[test] = result["message"] or result["outcome"]
            else:
                verdict.adapted[test] = adaptation.reason
    for test in wrapped.keys() - plain.keys():
        verdict.ours[test] = "did not run with a plain wrapper"
    return verdict
