"""Batches for progress in stages: what each clip shows, and what it is said to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rollouts import BLUE, painted_tasks

from vlp_gym.data.trajectory import ALL_TIERS, APART, EITHER_WAY, RETREAT, TIERS
from vlp_gym.training.recipes.stage_clips import FRAMES_PER_TASK, StageSampler

TIER_OF = {blue: tier for tier, blue in BLUE.items()}
EVERY = (*TIERS, RETREAT, APART)
PAIR = painted_tasks(["door-open-v3", "door-close-v3"], each=1, size=8, tiers=EVERY)
ALONE = painted_tasks(["push-v3", "door-open-v3"], each=1, size=8, tiers=EVERY)
SETTINGS = {"tasks_per_batch": 2, "clips_per_task": 6, "frames_per_clip": 5, "seed": 0}


def batches(rollouts, count=20):
    sampler = StageSampler(rollouts, **SETTINGS)
    return [sampler.batch(number) for number in range(count)]


def clips(batch):
    """Index of each clip, and which frames of which rollout it shows, as painted."""
    for g in range(batch.frames.shape[0]):
        for c in range(batch.frames.shape[1]):
            paint = batch.frames[g, c, :, 0, 0].long()
            yield (g, c), paint[:, 1] // 8, TIER_OF[int(paint[0, 2])]


def test_shapes():
    batch = batches(PAIR, 1)[0]
    assert batch.frames.shape == (2, 6, 5, 8, 8, 3)
    assert batch.positions.shape == (2, 6, 5, 2, 3)
    for name in ("approach", "moved", "way", "opposite_way", "timed"):
        assert getattr(batch, name).shape == (2, 6, 5)
    assert len(batch.instructions) == len(batch.opposites) == 2


def test_a_clip_begins_where_its_episode_does():
    turned = 0
    for batch in batches(PAIR):
        for (g, c), frames, tier in clips(batch):
            steps = torch.diff(frames)
            backwards = bool((steps < 0).any())
            turned += backwards
            assert (steps <= 0).all() if backwards else frames[0] == 0 and (steps >= 0).all()
            assert not backwards or tier in ("expert", RETREAT)
            assert batch.moved[g, c, 0] == 0
    assert turned > 5


def test_the_first_clips_have_their_tiers():
    for batch in batches(PAIR, 5):
        for (_, c), _, tier in clips(batch):
            assert tier == ("expert", "medium", "random")[c] if c < 3 else True


def test_an_expert_goes_its_way_and_no_way_under_the_opposite():
    for batch in batches(PAIR, 5):
        for (g, c), frames, _ in clips(batch):
            if c == 0 and (torch.diff(frames) >= 0).all():
                done = frames >= 12
                assert (batch.way[g, c][done] == 1).all()
                assert (batch.opposite_way[g, c][done] == 0).all()


def test_a_backward_clip_goes_the_opposite_way():
    """Of its own task; where the opposite task is shown backwards, that is the task's own way."""
    ends = []
    for batch in batches(PAIR):
        for (g, c), frames, _ in clips(batch):
            if (torch.diff(frames) < 0).any() and frames[-1] == 0:
                ends.append((c, batch.way[g, c, -1].item(), batch.opposite_way[g, c, -1].item()))
    assert {(way, other) for c, way, other in ends if c < 5} == {(0.0, 1.0)}
    assert {(way, other) for c, way, other in ends if c == 5} == {(0.0, 1.0), (1.0, 0.0)}


def test_what_goes_away_from_success_goes_the_opposite_way():
    rollouts = [*PAIR, *painted_tasks(["door-open-v3", "door-close-v3"], each=1, size=8, tiers=[EITHER_WAY])]
    seen = 0
    for batch in batches(rollouts):
        for (g, c), frames, tier in clips(batch):
            if tier == EITHER_WAY:
                seen += 1
                expected = torch.where(frames >= 8, 1.0, 2 / 3 * frames / 8)  # 0.05 m a frame, 0.4 m in all
                torch.testing.assert_close(batch.opposite_way[g, c], expected, atol=1e-3, rtol=0)
                assert not batch.way[g, c][frames > 0].nan_to_num(0).any()
                assert batch.moved[g, c].tolist() == [float(frame > 0) for frame in frames]
    assert seen > 5


def test_an_expert_backwards_is_near_at_first_and_leaves():
    seen = 0
    for batch in batches(PAIR):
        for (g, c), frames, tier in clips(batch):
            if tier == "expert" and (torch.diff(frames) < 0).any():
                torch.testing.assert_close(batch.approach[g, c], (frames / 5).clamp(max=1))
                assert batch.approach[g, c, 0] == 1
                assert torch.equal(batch.moved[g, c] == 1, frames < 15)
                if c < 5:  # the task's own: undone is no way
                    assert batch.way[g, c].nan_to_num(0).max() == 0
                seen += 1
    assert seen > 5


def test_a_clip_of_the_opposite_task_goes_no_way():
    number_of = {(t.seed, ALL_TIERS.index(t.tier)): t.task for t in PAIR}
    seen = 0
    for batch in batches(PAIR):
        sampler = StageSampler(PAIR, **SETTINGS)
        for (g, c), frames, tier in clips(batch):
            task = number_of[int(batch.frames[g, c, 0, 0, 0, 0]) // 20, ALL_TIERS.index(tier)]
            own = batch.instructions[g] in sampler.sentences[task]
            if not own and tier == "expert" and not (torch.diff(frames) < 0).any() and (frames >= 12).any():
                assert c == 5
                assert (batch.way[g, c][frames >= 12] == 0).all()
                assert (batch.opposite_way[g, c][frames >= 12] == 1).all()
                seen += 1
    assert seen


def test_opposites_are_sentences_of_the_opposite_task_or_made_by_rules():
    sampler = StageSampler(PAIR, **SETTINGS)
    for batch in batches(PAIR, 5):
        for own, other in zip(batch.instructions, batch.opposites, strict=True):
            owner = next(task for task, sentences in sampler.sentences.items() if own in sentences)
            assert other in sampler.sentences[sampler.opposite_of[owner]]
    for batch in batches(ALONE, 5):
        for own, other in zip(batch.instructions, batch.opposites, strict=True):
            assert other is None or (other not in sampler.sentences["door-open-v3"] and other != own)


def test_an_opposite_that_another_task_asks_for_is_not_made_up():
    """ "Get the puck out of the hole" turned round is what sweep-into asks for."""
    sampler = StageSampler(painted_tasks(["pick-out-of-hole-v3", "sweep-into-v3"], each=1, size=8), **SETTINGS)
    asked = {sentence for sentences in sampler.sentences.values() for sentence in sentences}
    made = {sentence for number in range(100) for sentence in sampler.first_frames(number).sentences[2:]}
    assert len(made) > 5
    assert not made & asked


def test_opposites_of_one_sentence_are_drawn_evenly():
    sampler, rng = StageSampler(ALONE, **SETTINGS), np.random.default_rng(0)
    drawn = [sampler._opposite("door-open-v3", "open the door", rng) for _ in range(400)]
    assert set(drawn) == {"close the door", "shut the door"}
    assert np.mean([sentence == "shut the door" for sentence in drawn]) == pytest.approx(0.5, abs=0.08)


def test_positions_that_are_unknown_leave_time():
    unknown = [replace(t, positions=np.full_like(t.positions, np.nan)) for t in ALONE]
    timed = 0
    for batch in batches(unknown, 5):
        known = ~batch.timed.isnan()
        timed += int(known.sum())
        assert ((batch.timed[known] >= 0) & (batch.timed[known] <= 1)).all()
    assert timed > 100
    assert all(batch.timed.isnan().all() for batch in batches(ALONE, 5))


def test_first_frames():
    for rollouts, tasks in ((PAIR, 2), (ALONE, 2)):
        batch = StageSampler(rollouts, **SETTINGS).first_frames(3)
        assert batch.tasks == tasks
        assert batch.frames.shape == (tasks * FRAMES_PER_TASK, 8, 8, 3)
        assert (batch.frames[:, 0, 0, 1] == 0).all()  # the first of each rollout
        assert batch.fits.shape == (tasks * FRAMES_PER_TASK, len(batch.sentences))
        own = batch.fits[:, :tasks]
        expected = torch.ones(2, 2) if rollouts is PAIR else torch.eye(2)  # one scene, or two
        assert torch.equal(own, expected.bool().repeat_interleave(FRAMES_PER_TASK, 0))


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    sampler = StageSampler(PAIR, **SETTINGS)
    for number in range(3):
        sampler.batch(number)
    again, other = StageSampler(PAIR, **SETTINGS).batch(3), StageSampler(PAIR, **{**SETTINGS, "seed": 1}).batch(3)
    assert torch.equal(sampler.batch(3).frames, again.frames)
    assert not torch.equal(again.frames, other.frames)


def test_some_groups():
    batch = batches(PAIR, 1)[0]
    some = batch.groups([1])
    assert torch.equal(some.way, batch.way[1:])
    assert some.instructions == batch.instructions[1:]


@pytest.mark.parametrize("count", [1, 3])
def test_tasks_per_batch(count):
    with pytest.raises(ValueError, match=rf"^tasks_per_batch: expected 2 to 2 \(the tasks there are\), got {count}$"):
        StageSampler(PAIR, **{**SETTINGS, "tasks_per_batch": count})


def test_every_tier_is_needed():
    with pytest.raises(
        ValueError, match=r"^door-open-v3: expected trajectories of every tier, found none of \['medium'\]$"
    ):
        StageSampler([t for t in PAIR if (t.task, t.tier) != ("door-open-v3", "medium")], **SETTINGS)
