from __future__ import annotations

import json
import sys

import pytest

from vlp_gym.errors import MissingExtraError
from vlp_gym.evaluation.report import FIGURES, markdown, write_report

NAMES = [name for group in FIGURES.values() for name in group]


def result(**changes):
    per_task = {f"task-{k}-v3": dict.fromkeys(NAMES, 0.25 + k / 2) for k in range(2)}
    per_task["task-1-v3"]["ivp_sibling"] = None
    return {
        "split": "painted",
        "seed": 3,
        "tasks": list(per_task),
        "settings": {
            "model": "Oracle",
            "window": 4,
            "history": "prefix",
            "pairs_per_task": 40,
            "segment_steps": 50,
            "pairs_by": "rewards",
        },
        "counts": {},
        "mean": dict.fromkeys(NAMES, 0.5),
        "spread": dict.fromkeys(NAMES, 0.35),
        "per_task": per_task,
        **changes,
    }


def test_three_files(tmp_path):
    paths = write_report(result(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["results.json", "results.md", "results.png"]
    assert json.loads(paths[0].read_text()) == result()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)


def test_markdown_has_each_figure_once():
    text = markdown(result())
    assert "| ITP, scripted labels | 0.500 | 0.350 | 0.250 | 0.750 |" in text
    assert "| IVP, same object, opposite task (experts) | 0.500 | 0.350 | 0.250 | - |" in text
    assert sum(line.count("| 0.500 |") for line in text.splitlines()) == len(NAMES)


def test_figures_that_are_missing_are_no_bars(tmp_path):
    empty = result(mean=dict.fromkeys(NAMES) | {"ivp": 0.5})
    assert len(write_report(empty, tmp_path)) == 3


def test_without_matplotlib_the_tables_are_still_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'^drawing needs matplotlib: pip install "vlp_gym\[viz\]"$'):
        write_report(result(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_nan_is_refused_and_the_old_report_stays(tmp_path):
    write_report(result(), tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(result(seed=float("nan")), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == result()
