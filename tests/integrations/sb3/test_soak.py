"""50,000 transitions under faults; `python -m tests.soak` does 5 million."""

from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")

from tests.soak import soak


@pytest.mark.slow
def test_nothing_is_lost_doubled_misattributed_or_sampled_while_it_waits():  # faults 26, 27, 39, 45, 46
    counts = soak(50_000)
    for name in ("lost", "doubled", "misattributed", "sampled wrong"):
        assert counts[name] == 0, counts
    assert counts["delivered"] > 0.99 * counts["given out"] >= 0.99 * 50_000
    assert counts["sampled"] > 90_000
    for fault in ("step raises", "render raises", "interrupted", "model raises", "NaN", "slow"):
        assert counts[f"faults: {fault}"] > 0, fault
    assert counts["buffer: stale"] > 0
