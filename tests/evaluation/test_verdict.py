"""What is said of a model: each fault alone, and nothing where nothing is known."""

from __future__ import annotations

import pytest

from vlp_gym.evaluation.report import FIGURES
from vlp_gym.evaluation.verdict import BOUNDS, verdict

GOOD = {
    "voc_expert_spearman": 0.95, "control_frozen": 0.0, "control_frozen_drift": 0.0, "control_reversed": -0.8,
    "control_wrong_instruction": 0.1, "success_auc": 0.97, "itp_near_miss": 0.96, "near_over_done": 0.3,
    "novelty": 1.0,
}  # fmt: skip
BAD = {
    "voc_expert_spearman": 0.5, "control_frozen": 0.9, "control_frozen_drift": 0.6, "control_reversed": 0.4,
    "control_wrong_instruction": 0.9, "success_auc": 0.5, "itp_near_miss": 0.4, "near_over_done": 1.0,
    "novelty": 4.0,
}  # fmt: skip


def said(**changes):
    return verdict({"mean": {**GOOD, **changes}})


def test_every_bound_is_a_figure_of_the_report():
    assert {bound.figure for bound in BOUNDS} == GOOD.keys() == BAD.keys()
    assert {bound.figure for bound in BOUNDS} <= {name for group in FIGURES.values() for name in group}


def test_a_good_one():
    assert said().startswith("**Nothing here speaks against paying rewards with it.**")


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.figure)
def test_each_fault_alone(bound):
    text = said(**{bound.figure: BAD[bound.figure]})
    assert text.startswith(f"**Not fit to pay rewards**: {bound.fault} ({bound.figure} {BAD[bound.figure]:.2f}, ")
    assert f"What would help: {bound.cure}." in text
    assert sum(other.fault in text for other in BOUNDS) == 1


def test_a_value_that_falls_on_a_frozen_video_is_no_better():
    assert "it counts frames" in said(control_frozen=-0.9)


def test_all_faults_name_each_cure_once():
    text = verdict({"mean": BAD})
    assert all(bound.fault in text for bound in BOUNDS)
    assert text.count("clips of uneven pace") == 1


def test_what_the_data_cannot_tell():
    assert said(success_auc=None).endswith("Not known from these data: success_auc.")
    assert said(success_auc=None).startswith("**Nothing here speaks against")
    nothing = verdict({"mean": dict.fromkeys(GOOD)})
    assert nothing.startswith("**Nobody can say whether it is fit")
    assert [name for name in GOOD if name not in nothing] == ["novelty"]  # few models know
