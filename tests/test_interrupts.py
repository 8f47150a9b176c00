"""A few interrupts of each kind; `python -m tests.interrupts` does 600."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from tests.interrupts import AGENTS, KINDS, interrupted


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", AGENTS)
def test_ctrl_c_in_learn_leaves_no_wrong_row(name, kind):  # fault 39
    counts = interrupted(name, kind, 4)
    assert counts["interrupts"] == 4
    assert counts["steps"] > 40
