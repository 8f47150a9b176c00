"""The labels of approach, way and success, on positions that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rollouts import SUCCESS_AT, painted

from vlp_gym.data.trajectory import EITHER_WAY, RETREAT
from vlp_gym.training.recipes.stage_labels import (
    WAY_BEFORE_SUCCESS,
    label_away,
    label_backwards,
    label_stages,
    nearness,
    task_stages,
)

EXPERT = painted("push-v3", "expert")  # the hand reaches the object, 25 cm away, at frame 5, and takes it along 35 cm
STAGES = task_stages([EXPERT])


def labels(rollout=EXPERT, stages=STAGES):
    return label_stages(rollout.positions, rollout.success, stages)


def moved_by(rollout, shift):
    """The same rollout in which the object moves otherwise: float ``[F, 3]`` is added to its first place."""
    positions = rollout.positions.copy()
    positions[:, 1] = positions[0, 1] + shift
    return replace(rollout, positions=positions, success=np.zeros_like(rollout.success))


class TestTask:
    def test_what_an_expert_does(self):
        assert STAGES.mover == 1
        assert STAGES.moved == 0.02
        assert STAGES.touch == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(STAGES.displacements, [[0.35, 0, 0]], atol=1e-6)

    def test_a_short_way_counts_as_moved_sooner(self):
        short = EXPERT.positions.copy()
        short[:, 1, 0] = short[0, 1, 0] + np.linspace(0, 0.03, len(short))
        assert task_stages([replace(EXPERT, positions=short)]).moved < 0.02

    def test_a_task_in_which_nothing_moves_is_about_the_hand(self):
        still = moved_by(EXPERT, 0.0)
        stages = task_stages([replace(still, success=EXPERT.success)])
        assert stages.mover == 0
        found = labels(replace(still, success=EXPERT.success), stages)
        np.testing.assert_allclose(found.way[:SUCCESS_AT], np.arange(SUCCESS_AT) / SUCCESS_AT, atol=1e-5)
        np.testing.assert_array_equal(found.approach, found.way)


class TestLabels:
    def test_the_three_stages_of_an_expert(self):
        found, frame = labels(), np.arange(16)
        np.testing.assert_allclose(found.approach, np.minimum(frame / 5, 1), atol=1e-5)
        np.testing.assert_allclose(found.way, np.clip((frame - 5) / 7, 0, 1), atol=1e-5)
        np.testing.assert_allclose(found.moved, np.maximum(frame - 5, 0) * 0.05 / 0.02, atol=1e-3)
        np.testing.assert_array_equal(found.success, frame >= SUCCESS_AT)
        assert found.has_moved().tolist() == [0.0] * 6 + [1.0] * 10
        np.testing.assert_allclose(found.paid_way()[11:13], [WAY_BEFORE_SUCCESS * 6 / 7, 1], atol=1e-5)

    def test_the_wrong_direction_is_no_way(self):
        back = labels(moved_by(EXPERT, np.outer(np.arange(16), [-0.03, 0, 0])))
        assert (back.way == 0).all()
        assert back.has_moved()[-1] == 1
        assert np.isnan(back.wrong_way()[-1])  # it may be the opposite's way, or none

    def test_half_the_way_is_half(self):
        half = labels(moved_by(EXPERT, np.outer(np.linspace(0, 0.175, 16), [1, 0, 0])))
        assert half.way[-1] == pytest.approx(0.5, abs=1e-5)
        assert half.paid_way()[-1] == pytest.approx(0.5 * WAY_BEFORE_SUCCESS, abs=1e-5)

    def test_a_centimetre_is_neither_still_nor_moved(self):
        assert np.isnan(
            labels(moved_by(EXPERT, np.array([0.015, 0, 0]) * (np.arange(16) > 0)[:, None])).has_moved()[-1]
        )

    def test_unknown_positions_are_unknown_labels(self):
        unknown = labels(replace(EXPERT, positions=np.full_like(EXPERT.positions, np.nan)))
        assert np.isnan(unknown.approach[: SUCCESS_AT - 1]).all()
        assert np.isnan(unknown.has_moved()[: SUCCESS_AT - 1]).all()


def test_away_from_success_is_the_way_of_the_opposite():
    rollout = painted("door-open-v3", EITHER_WAY)
    labels, away = label_stages(rollout.positions, rollout.success, STAGES), label_away(rollout.positions, STAGES)
    assert (labels.way == 0).all()
    frames = np.arange(16)
    np.testing.assert_allclose(away.paid_way(), np.where(frames >= 8, 1, 2 / 3 * frames / 8), atol=1e-6)
    assert away.has_moved().tolist() == [0.0] + [1.0] * 15


def test_near_is_near_whatever_has_moved():
    positions = EXPERT.positions.copy()
    positions[10:, 0, 1] += 0.125  # half the way that it has come
    found = nearness(positions, STAGES)
    np.testing.assert_allclose(found, np.where(np.arange(16) < 10, np.minimum(np.arange(16) / 5, 1), 0.5), atol=1e-5)
    assert label_stages(positions, EXPERT.success, STAGES).approach[12] == 1


class TestBackwards:
    def test_the_hand_comes_and_the_object_goes_back(self):
        rollout = painted("push-v3", RETREAT, frames=18)
        back = label_backwards(rollout.positions, STAGES)
        shown = replace(back, **{name: series[::-1] for name, series in vars(back).items()})
        np.testing.assert_allclose(shown.approach, np.clip(np.arange(18) / 5, 0, 1), atol=1e-5)
        np.testing.assert_allclose(shown.way[:13], np.clip((np.arange(13) - 5) / 7, 0, 1), atol=0.05)
        assert shown.way[0] == 0
        assert shown.success[-1] == shown.way[-1] == 1
        assert shown.has_moved().tolist() == [0.0] * 6 + [1.0] * 12
