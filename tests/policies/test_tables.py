from __future__ import annotations

import re

import numpy as np
import pytest

from vlp_gym.errors import CheckpointError
from vlp_gym.policies.result import PolicyResult, markdown, summarize
from vlp_gym.policies.tables import read_results, tables


def result(task, method, source, *, success=0.5, published=None):
    """Two seeds, whose success is 0.1 above and below the given one in each of ten evaluations but the last, with 0."""
    rows = [{"step": 10 * k, "success": [success - 0.1, success + 0.1]} for k in range(9)]
    figures = summarize([*rows, {"step": 90, "success": [0.0, 0.0]}])
    return PolicyResult(
        method=method, task=task, source=source, labels=None, options={}, seeds=[0, 1], episodes=25, horizon=250,
        data_success=1 / 3, reward_accuracy=None, published=published, cpu_minutes=1.5, **figures,
    )  # fmt: skip


def save(made, folder):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(made.model_dump_json())


def test_figures_of_evaluations():
    made = result("push-v3", "cpl", "scripted")
    assert made.largest_mean == pytest.approx([0.4, 0.6])
    assert (made.last, made.iqm) == ([0.0, 0.0], pytest.approx(0.5))
    assert made.iqm_interval == (pytest.approx(0.4), pytest.approx(0.6))
    assert len(made.curve) == 2
    assert made.steps == list(range(0, 100, 10))
    with pytest.raises(ValueError, match=r"^expected at least one evaluation, got none$"):
        summarize([])


def test_one_row():
    made = result("door-close-v3", "cpl", "scripted", published=(98.5, 1.0))
    deviation = np.std([40, 60], ddof=1)
    assert markdown([made]).splitlines()[2] == (
        f"| door-close | cpl | scripted | 50.0 ± {deviation:.1f} | 0.0 ± 0.0 | 50.0 [40.0, 60.0] | 98.5 ± 1.0 | 33.3 |"
    )


def test_tables(tmp_path):
    made = [
        result("door-close-v3", "cpl", "scripted", success=0.8, published=(98.5, 1.0)),
        result("door-close-v3", "p-iql", "scripted", success=0.7, published=(79.2, 6.3)),
        result("window-open-v3", "cpl", "scripted", success=0.6, published=(91.6, 1.7)),
        result("door-close-v3", "bc", "all", success=0.3),
    ]
    for number, each in enumerate(made):
        save(each, tmp_path / str(number % 2) / str(number))
    text = tables(read_results(tmp_path))
    assert text.splitlines() == [
        "## Policies from preferences (VLP's tables 2 and 4)",
        "",
        "| task | p-iql, scripted | cpl, scripted | data |",
        "| --- | ---: | ---: | ---: |",
        "| door-close | 70.0 ± 14.1 (0.0) / 79.2 ± 6.3 | 80.0 ± 14.1 (0.0) / 98.5 ± 1.0 | 33.3 |",
        "| window-open | - | 60.0 ± 14.1 (0.0) / 91.6 ± 1.7 | 33.3 |",
        "| mean | - | 70.0 (0.0) / 95.0 |  |",
        "",
        "Missing: window-open-v3 p-iql scripted.",
        "",
        "## Imitation, for comparison",
        "",
        "| task | bc, all | data |",
        "| --- | ---: | ---: |",
        "| door-close | 30.0 ± 14.1 (0.0) | 33.3 |",
        "| mean | 30.0 (0.0) |  |",
    ]


def test_what_cannot_be_read(tmp_path):
    message = f"{tmp_path}: expected runs of `vlp-gym policy` with a result.json, found none"
    with pytest.raises(CheckpointError, match="^" + re.escape(message) + "$"):
        read_results(tmp_path)
    for name in "ab":
        save(result("push-v3", "cpl", "scripted"), tmp_path / name)
    one, other = (tmp_path / name / "result.json" for name in "ab")
    message = f"{other} and {one} are both of push-v3, cpl, scripted; name a folder with one of them"
    with pytest.raises(CheckpointError, match="^" + re.escape(message) + "$"):
        read_results(tmp_path)
    made = result("push-v3", "cpl", "scripted")
    other.write_text(made.model_dump_json().replace('"last":[0.0', '"last":[7.0'))
    message = f"{other}: last.0: expected less than or equal to 1, got 7.0"
    with pytest.raises(CheckpointError, match="^" + re.escape(message) + "$"):
        read_results(tmp_path)
    other.write_text("{")
    with pytest.raises(CheckpointError, match="^" + re.escape(f"{other}: the document: ")):
        read_results(tmp_path)
