"""What rollouts are labelled with, against what the painted positions and rewards say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rollouts import SUCCESS_AT, painted, painted_tasks

from vlp_gym.data.trajectory import ALL_TIERS, EXPLORE, NEAR_MISS
from vlp_gym.training.recipes.frame_labels import (
    BEFORE_SUCCESS,
    expert_ways,
    label_task,
    progress_by_reward,
    progress_by_way,
)

EXPERTS = [painted("push-v3", "expert", k) for k in range(3)]


class TestTask:
    def test_experts_by_time_and_others_by_reward_and_way(self):
        rollouts = painted_tasks(["push-v3"], tiers=ALL_TIERS[:6])
        for rollout, progress in zip(rollouts, label_task(rollouts), strict=True):
            index = np.arange(len(rollout.frames))
            if rollout.tier == "expert":
                expected = np.where(index >= SUCCESS_AT, 1, BEFORE_SUCCESS * index / SUCCESS_AT)
                assert progress == pytest.approx(expected)
            else:  # an expert's reward grows with its clock, to 10 at success, give or take 0.5
                way = np.where(index < 5, 0.05 * index, 0.1 * index - 0.25)  # metres: the hand alone 0.25, both 0.35
                way = np.minimum(way, 0.95 - 0.15 * (index - SUCCESS_AT))  # and too far: the hand, twice the object
                expected = BEFORE_SUCCESS * np.minimum(rollout.reward / 10, way / 0.95)
                assert progress == pytest.approx(expected, abs=0.1)

    def test_what_has_not_moved_has_made_no_progress_whatever_it_is_paid(self):
        """Meta-World pays a gripper beside the button more than the expert that has pressed it."""
        paid = painted("push-v3", EXPLORE)
        paid.reward[8:] = 20.0
        paid.positions[:] = paid.positions[0]
        assert label_task([*EXPERTS, paid])[-1] == pytest.approx(0, abs=1e-6)

    def test_by_the_reward_alone_where_positions_are_unknown(self):
        unknown = painted("push-v3", "medium")
        unknown.positions[:] = np.nan
        expected = BEFORE_SUCCESS * np.interp(unknown.reward, *progress_by_reward(EXPERTS))
        assert label_task([*EXPERTS, unknown])[-1] == pytest.approx(expected)

    def test_where_neither_is_known(self):
        """As in videos: a failure gets somewhere, random actions nowhere, and a success is one."""
        silent = [painted("push-v3", tier) for tier in ("expert", "medium", "random", NEAR_MISS)]
        silent.append(replace(silent[1], success=np.arange(16) >= 14))
        for rollout in silent:
            rollout.positions[:], rollout.reward[:] = np.nan, 0.0
        labels = label_task(silent)
        rising = BEFORE_SUCCESS * np.arange(16) / 15 / 2
        assert labels[0][SUCCESS_AT:] == pytest.approx(1)
        assert labels[1] == pytest.approx(rising)
        assert labels[2] == pytest.approx(0)
        assert labels[3] == pytest.approx(rising)
        assert labels[4] == pytest.approx([*rising[:14], 1, 1])


class TestProgressByReward:
    def test_it_is_the_clock_where_the_reward_rises(self):
        reward, progress = progress_by_reward(EXPERTS)
        assert (np.diff(reward) >= 0).all()
        assert (np.diff(progress) >= 0).all()
        assert np.interp([0, 5, 11], reward, progress) == pytest.approx([0, 0.5, 1], abs=0.05)

    def test_a_reward_that_falls_on_the_way_gives_one_progress(self):
        expert = painted("push-v3", "expert")
        expert.reward[4:8] = expert.reward[4:8][::-1].copy()  # dearer at a third of the way than at a half
        reward, progress = progress_by_reward([expert])
        found = np.interp(expert.reward[4:8], reward, progress)
        assert found == pytest.approx(5.5 / SUCCESS_AT)


class TestProgressByWay:
    def test_an_expert_is_as_far_as_it_has_come(self):
        found = progress_by_way(EXPERTS[0].positions, expert_ways(EXPERTS))
        hand, both = 0.25, 2 * 0.35  # metres: the hand alone to the object at frame 5, then both to frame 12
        way = np.concatenate([np.linspace(0, hand, 6), hand + np.linspace(0, both, 8)[1:]]) / (hand + both)
        assert found[: SUCCESS_AT + 1] == pytest.approx(way, abs=1e-6)

    def test_against_loops(self):
        rng = np.random.default_rng(0)
        ways = expert_ways(EXPERTS)
        positions = rng.normal(0.2, 0.2, (7, 2, 3)).astype(np.float32)
        expected = []
        for hand, at in positions - positions[0, 1]:
            costs = []
            for (expert_hand, expert_at), left in zip(ways.states, ways.left, strict=True):
                apart = np.sqrt(((hand - expert_hand) ** 2).sum()) + 2 * np.sqrt(((at - expert_at) ** 2).sum())
                costs.append(apart + left)
            expected.append(min(max(1 - min(costs) / ways.length, 0), 1))
        assert progress_by_way(positions, ways) == pytest.approx(expected, abs=1e-5)
        assert min(expected) < max(expected)

    def test_where_all_happens_does_not_matter(self):
        moved = EXPERTS[0].positions + np.float32([0.3, -0.1, 0.2])
        ways = expert_ways(EXPERTS)
        assert progress_by_way(moved, ways) == pytest.approx(progress_by_way(EXPERTS[0].positions, ways), abs=1e-5)

    def test_beside_the_object_is_not_there(self):
        beside = EXPERTS[0].positions.copy()
        beside[5:, 0] = beside[5, 0] + np.float32([0, 0.1, 0])  # the hand stops 10 cm beside the object, which stays
        beside[:, 1] = beside[0, 1]
        found = progress_by_way(beside, expert_ways(EXPERTS))
        assert found[-1] == pytest.approx((0.25 - 0.1) / 0.95, abs=1e-6)

    def test_positions_that_are_not_known(self):
        unknown = np.full_like(EXPERTS[0].positions, np.nan)
        assert np.isnan(progress_by_way(unknown, expert_ways(EXPERTS))).all()
        mixed = expert_ways([replace(EXPERTS[0], positions=unknown), *EXPERTS[1:]])
        assert mixed.length == expert_ways(EXPERTS[1:]).length
        assert np.isnan(expert_ways([replace(EXPERTS[0], positions=unknown)]).length)
