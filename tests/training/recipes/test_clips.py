"""Training clips: what each target says is worked out again from the painted frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rollouts import STRIDE, SUCCESS_AT, painted, painted_tasks

from vlp_gym.data.trajectory import AGENT, ALL_TIERS, EXPLORE, NEAR_MISS, TIERS
from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.metaworld.opposites import opposite_sentences
from vlp_gym.training.recipes.clips import UNDONE, ClipSampler
from vlp_gym.training.recipes.compact import VALUE_MARGIN
from vlp_gym.training.recipes.frame_labels import BEFORE_SUCCESS, SUCCESS_VALUE

TASKS = ("door-open-v3", "push-v3", "reach-v3")
ROLLOUTS = {task: painted_tasks([task], tiers=ALL_TIERS[:6]) for task in TASKS}  # 7 would be too many for the paint
EVERY = [trajectory for group in ROLLOUTS.values() for trajectory in group]
SETTINGS = {"tasks_per_batch": 2, "clips_per_task": 4, "window": 8, "seed": 0}
TASK_OF = {sentence: task for task in TASKS for sentence in training_phrasings(task)}


@pytest.fixture(scope="module")
def batches():
    sampler = ClipSampler(EVERY, **SETTINGS)
    return [sampler.batch(number) for number in range(60)]


def clips(batches):
    """(task, slot, rollout, frame indices [T], targets by name) of each clip, read from the paint."""
    for batch in batches:
        paint = batch.frames[..., 0, 0, :].numpy()
        for group, sentence in enumerate(batch.instructions):
            for slot in range(batch.frames.shape[1]):
                red, green, _ = paint[group, slot].T
                names = (
                    "progress",
                    "value",
                    "tier",
                    "segment_return",
                    "expert",
                    "reversed",
                    "positions",
                    "moved",
                    "nearing",
                )
                targets = {name: getattr(batch, name)[group, slot].numpy() for name in names}
                task = TASK_OF[sentence]
                yield task, slot, ROLLOUTS[task][red[0] // 20], (green // 8).astype(int), targets


def test_shapes_and_kinds(batches):
    for batch in batches:
        groups, count, time = batch.frames.shape[:3]
        assert (groups, count) == (2, 4)
        assert time in (2, 4, 6, 8)
        assert batch.frames.dtype == torch.uint8
        assert batch.progress.shape == batch.value.shape == (2, 4, time)
        assert batch.tier.shape == batch.segment_return.shape == (2, 4)
        assert batch.expert.shape == batch.reversed.shape == (2, 4)
        assert len(batch.instructions) == len(batch.opposites) == 2
        for sentence, opposite in zip(batch.instructions, batch.opposites, strict=True):
            options = opposite_sentences(sentence)
            assert opposite in options if options else opposite is None
            assert opposite != sentence
        assert len({TASK_OF[sentence] for sentence in batch.instructions}) == 2  # only training phrasings


def test_a_clip_is_of_one_rollout_of_its_own_task(batches):
    for batch in batches:
        red = batch.frames[..., 0, 0, 0]
        assert (red == red[..., :1]).all()
    for _, slot, rollout, _, _ in clips(batches):
        wanted = {0: ("expert",), 1: ("medium",), 2: ("random", NEAR_MISS, EXPLORE, AGENT)}.get(slot, ALL_TIERS)
        assert rollout.tier in wanted


def test_targets(batches):
    modes = dict.fromkeys(("whole", "rewound", "reversed", "expert", "unknown"), 0)
    for task, _, rollout, index, targets in clips(batches):
        left = UNDONE if targets["reversed"] else 1
        if rollout.tier == "expert":
            expected = np.where(index >= SUCCESS_AT, 1, BEFORE_SUCCESS * index / SUCCESS_AT)
            assert targets["progress"] == pytest.approx(left * expected)
        else:  # an expert's reward grows with its clock, to 10 at success, give or take 0.5
            way = np.where(index < 5, 0.05 * index, 0.1 * index - 0.25)  # metres: the hand alone 0.25, both 0.35
            way = np.minimum(way, 0.95 - 0.15 * (index - SUCCESS_AT)) / 0.95  # and too far: the hand, twice the object
            expected = BEFORE_SUCCESS * np.minimum(rollout.reward[index] / 10, way)
            assert targets["progress"] == pytest.approx(left * expected, abs=0.1)
        assert targets["positions"] == pytest.approx(rollout.positions[index])
        before = (index <= 5) & (rollout.tier == "expert")  # painted hands reach the object there
        after = (index >= 5) & (rollout.tier == "expert")
        assert np.isnan(targets["nearing"]).tolist() == (~before).tolist()
        assert np.isnan(targets["moved"]).tolist() == (~after).tolist()
        assert targets["nearing"][before] == pytest.approx(-0.05 * (5 - index[before]), abs=1e-6)
        assert targets["moved"][after] == pytest.approx(0.05 * (index[after] - 5), abs=1e-6)
        turns = np.diff(index)
        if targets["reversed"]:
            modes["reversed"] += 1
            assert (turns <= 0).all()
            assert np.isnan(targets["value"]).all()
            assert np.isnan(targets["segment_return"])
            assert targets["tier"] == 0  # whatever was done is undone
            assert not targets["expert"]
            continue
        rewards = np.concatenate([other.reward for other in ROLLOUTS[task]])
        rank = [np.mean(rewards <= rollout.reward[i]) for i in index]
        assert targets["value"] == pytest.approx(np.where(rollout.success[index], SUCCESS_VALUE, rank))
        assert targets["segment_return"] == pytest.approx(rollout.reward[index].mean(), rel=1e-5)
        rewound = (turns < 0).any()
        modes["rewound"] += rewound
        if not np.isnan(targets["tier"]):
            modes["whole"] += 1
            assert targets["tier"] == {"expert": 2, "medium": 1, "random": 0}[rollout.tier]
            assert (index[0], index[-1]) == (0, len(rollout.frames) - 1)
        else:
            modes["unknown"] += 1
        if rollout.tier in (NEAR_MISS, EXPLORE, AGENT):
            assert np.isnan(targets["tier"])
        if targets["expert"]:
            modes["expert"] += 1
            assert rollout.tier == "expert"
            assert index[0] == 0
            assert index[-1] >= SUCCESS_AT
            assert not rewound
    assert min(modes.values()) > 3, modes


def test_success_is_ordered_above_the_best_rank():
    assert SUCCESS_VALUE - 1 > VALUE_MARGIN


def test_segments_are_fifty_steps(batches):
    spans = [index[-1] - index[0] for _, _, _, index, _ in clips(batches)]
    assert spans.count(50 // STRIDE) > 0.15 * len(spans)


def test_a_batch_depends_on_its_number_alone(batches):
    again = ClipSampler(EVERY, **SETTINGS).batch(17)  # without the seventeen before it
    other = ClipSampler(EVERY, **{**SETTINGS, "seed": 1}).batch(17)
    for name, value in vars(again).items():
        before = getattr(batches[17], name)
        assert value == before if isinstance(value, list) else torch.equal(value.nan_to_num(-1), before.nan_to_num(-1))
    assert other.frames.shape != again.frames.shape or not torch.equal(other.frames, again.frames)


def test_to_another_device(batches):
    moved = batches[0].to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.instructions == batches[0].instructions


def test_a_reward_above_the_experts_at_success_says_nothing():
    """Meta-World pays a gripper beside the button more than the expert that has pressed it."""
    paid = [painted("push-v3", EXPLORE, number) for number in range(2)]
    for rollout in paid:
        rollout.reward[8:] = 20.0
        rollout.positions[:] = rollout.positions[0]
    sampler = ClipSampler([t for t in EVERY if (t.task, t.tier) != ("push-v3", EXPLORE)] + paid, **SETTINGS)
    rng = np.random.default_rng(0)
    drawn = (sampler._clip("push-v3", 3, 8, rng) for _ in range(300))
    seen = [clip for clip in drawn if clip["frames"][0, 0, 0, 2] == 50 * ALL_TIERS.index(EXPLORE)]
    assert all(clip["progress"] == pytest.approx(0, abs=1e-6) for clip in seen)  # nothing has moved
    dear = [clip["frames"][:, 0, 0, 1] >= 8 * 8 for clip in seen if not clip["reversed"]]
    values = [np.isnan(clip["value"]) for clip in seen if not clip["reversed"]]
    assert np.concatenate(dear).any()
    np.testing.assert_array_equal(np.concatenate(values), np.concatenate(dear))


def test_an_opposite_that_is_a_task_of_its_own_is_not_made_up():
    pair = painted_tasks(["door-open-v3", "door-close-v3"])
    alone = painted_tasks(["door-open-v3", "reach-v3"])
    variation = painted_tasks(["button-press-v3", "button-press-topdown-v3"])
    assert ClipSampler(pair, **SETTINGS).batch(0).opposites == [None, None]
    assert None not in ClipSampler(variation, **SETTINGS).batch(0).opposites
    assert sum(sentence is not None for sentence in ClipSampler(alone, **SETTINGS).batch(0).opposites) == 1


def test_an_opposite_that_another_task_asks_for_is_not_made_up():
    """ "Get the puck out of the hole" turned round is what sweep-into asks for."""
    pair = ("pick-out-of-hole-v3", "sweep-into-v3")
    asked = {sentence for task in pair for sentence in training_phrasings(task)}
    sampler = ClipSampler(painted_tasks(pair), **SETTINGS)
    made = {sentence for number in range(150) for sentence in sampler.batch(number).opposites}
    assert len(made) > 5
    assert not made & asked


def test_the_draw_of_opposites_changes_nothing_else():
    """It comes last: the same seed gives the same clips and sentences whatever is known of opposites."""
    without = [replace(trajectory, opposite_sentences=(), opposite=None) for trajectory in EVERY]
    known, unknown = ClipSampler(EVERY, **SETTINGS), ClipSampler(without, **SETTINGS)
    for number in range(8):
        a, b = known.batch(number), unknown.batch(number)
        assert a.instructions == b.instructions
        assert b.opposites == [None, None]
        for name, value in vars(a).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, getattr(b, name), rtol=0, atol=0, equal_nan=True)


def test_opposites_of_one_sentence_are_drawn_evenly():
    sampler, rng = ClipSampler(EVERY, **SETTINGS), np.random.default_rng(0)
    drawn = [sampler._opposite("door-open-v3", "open the door", rng) for _ in range(400)]
    assert set(drawn) == {"close the door", "shut the door"}
    assert np.mean([sentence == "shut the door" for sentence in drawn]) == pytest.approx(0.5, abs=0.08)


def test_agents_are_drawn_most():
    sampler, rng = ClipSampler(EVERY, **SETTINGS), np.random.default_rng(0)
    blue = [sampler._clip("push-v3", 2, 2, rng)["frames"][0, 0, 0, 2] for _ in range(400)]
    assert np.mean(np.array(blue) == 50 * ALL_TIERS.index(AGENT)) == pytest.approx(4 / 8, abs=0.08)


def test_half_of_the_tasks_come_with_another_of_their_scene():
    tasks = (
        "door-open-v3",
        "door-lock-v3",
        "door-unlock-v3",
        "push-v3",
        "reach-v3",
        "sweep-v3",
        "soccer-v3",
        "hammer-v3",
    )
    every = [painted(task, tier) for task in tasks for tier in TIERS]
    sampler = ClipSampler(every, **SETTINGS)
    doors = [[task.split("-")[0] for task in sampler._draw_tasks(np.random.default_rng(k))] for k in range(400)]
    both = np.mean([pair == ["door", "door"] for pair in doors])
    assert both == pytest.approx(3 / 8 * (0.5 + 0.5 * 2 / 7), abs=0.06)


def test_focus_is_in_every_batch_and_the_others_take_turns():
    sampler = ClipSampler(EVERY, **SETTINGS, focus=["push-v3"])
    drawn = [sampler._draw_tasks(np.random.default_rng(k)) for k in range(30)]
    assert all(pair[0] == "push-v3" for pair in drawn)
    assert {pair[1] for pair in drawn} == {"door-open-v3", "reach-v3"}


@pytest.mark.parametrize(
    ("focus", "message"),
    [
        (["sweep-v3"], "focus: expected tasks that are trained on, got sweep-v3"),
        (["push-v3", "reach-v3", "push-v3"], "focus: expected at most half of a batch's 2 tasks, got 2"),
    ],
)
def test_focus_on_what_cannot_be(focus, message):
    with pytest.raises(ValueError, match="focus") as caught:
        ClipSampler(EVERY, **SETTINGS, focus=focus)
    assert str(caught.value) == message


def test_failed_experts_are_left_out():
    failed = painted("push-v3", "expert", 9, fails=True)
    sampler = ClipSampler([*EVERY, failed], **SETTINGS)
    assert len(EVERY) not in sampler.by_task["push-v3"]["expert"]


@pytest.mark.parametrize("count", [1, 4])
def test_tasks_that_are_not_there(count):
    with pytest.raises(ValueError) as caught:
        ClipSampler(EVERY, **{**SETTINGS, "tasks_per_batch": count})
    assert str(caught.value) == f"tasks_per_batch: expected 2 to 3 (the tasks there are), got {count}"


def test_too_few_clips_for_the_tiers():
    with pytest.raises(ValueError) as caught:
        ClipSampler(EVERY, **{**SETTINGS, "clips_per_task": 2})
    assert str(caught.value) == "clips_per_task: expected at least 3, got 2"


def test_tier_that_is_not_there():
    with pytest.raises(ValueError) as caught:
        ClipSampler([t for t in EVERY if (t.task, t.tier) != ("push-v3", "medium")], **SETTINGS)
    assert str(caught.value) == "push-v3: expected trajectories of every tier, found none of ['medium']"
