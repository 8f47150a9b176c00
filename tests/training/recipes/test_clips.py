"""Training clips: what each target says is worked out again from the painted frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rollouts import STRIDE, painted, painted_tasks

from vlp_gym.data.trajectory import AGENT, ALL_TIERS, EXPLORE, NEAR_MISS, TIERS
from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.training.recipes.clips import ClipSampler

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
                targets = {name: getattr(batch, name)[group, slot].numpy() for name in ("tier", "segment_return")}
                task = TASK_OF[sentence]
                yield task, slot, ROLLOUTS[task][red[0] // 20], (green // 8).astype(int), targets


def test_shapes_and_kinds(batches):
    for batch in batches:
        groups, count, time = batch.frames.shape[:3]
        assert (groups, count) == (2, 4)
        assert time in (2, 4, 6, 8)
        assert batch.frames.dtype == torch.uint8
        assert batch.tier.shape == batch.segment_return.shape == (2, 4)
        assert len(batch.instructions) == 2
        assert len({TASK_OF[sentence] for sentence in batch.instructions}) == 2  # only training phrasings


def test_a_clip_is_of_one_rollout_of_its_own_task(batches):
    for batch in batches:
        red = batch.frames[..., 0, 0, 0]
        assert (red == red[..., :1]).all()
    for _, slot, rollout, _, _ in clips(batches):
        wanted = {0: ("expert",), 1: ("medium",), 2: ("random", NEAR_MISS, EXPLORE, AGENT)}.get(slot, ALL_TIERS)
        assert rollout.tier in wanted


def test_targets(batches):
    modes = dict.fromkeys(("whole", "rewound", "reversed", "unknown"), 0)
    for _, _, rollout, index, targets in clips(batches):
        turns = np.diff(index)
        if np.isnan(targets["segment_return"]):
            modes["reversed"] += 1
            assert (turns <= 0).all()
            assert targets["tier"] == 0  # whatever was done is undone
            continue
        assert targets["segment_return"] == pytest.approx(rollout.reward[index].mean(), rel=1e-5)
        modes["rewound"] += (turns < 0).any()
        if not np.isnan(targets["tier"]):
            modes["whole"] += 1
            assert targets["tier"] == {"expert": 2, "medium": 1, "random": 0}[rollout.tier]
            assert (index[0], index[-1]) == (0, len(rollout.frames) - 1)
        else:
            modes["unknown"] += 1
        if rollout.tier in (NEAR_MISS, EXPLORE, AGENT):
            assert np.isnan(targets["tier"])
    assert min(modes.values()) > 3, modes


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
