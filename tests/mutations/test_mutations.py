"""A thousandth of the campaign, see `python -m tests.mutations`."""

from __future__ import annotations

import pytest

from tests.mutations.__main__ import all_targets
from tests.mutations.harness import BAD, run

TARGETS = all_targets()


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutation_is_refused_or_harmless(name: str) -> None:
    outcomes = list(run(TARGETS[name], range(10), seed=1))
    assert len(outcomes) == 10
    assert [outcome for outcome in outcomes if outcome.kind in BAD] == []
