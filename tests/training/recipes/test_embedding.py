"""The samples on which the objectives train, and one step of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from rollouts import painted_tasks

from vlp_gym.data.trajectory import group_views
from vlp_gym.errors import DatasetError
from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.models.embedding import EmbeddingModel
from vlp_gym.objectives.liv import liv_loss
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.embedding import NEGATIVES, OBJECTIVES, EmbeddingRecipe, negatives

CAMERAS = ("corner", "corner2", "corner3")
TASKS = ["push-v3", "reach-v3"]


def seen_by(trajectory, camera):
    """The painted rollout from another side: the tier's blue, which is 0 of experts, says which."""
    frames = trajectory.frames.copy()
    frames[..., 2] += 40 * CAMERAS.index(camera)
    return replace(trajectory, camera=camera, frames=frames)


ROLLOUTS = [seen_by(t, camera) for camera in CAMERAS for t in painted_tasks(TASKS, each=2, size=32)]


def recipe(objective="vip-text+vip", **options):
    return EmbeddingRecipe(ROLLOUTS, objective, **{"batch_size": 4, "samples": 12, **options})


def tiny(seed=0):
    torch.manual_seed(seed)
    return EmbeddingModel(image_size=32, channels=8, reduced=4, hidden=16, embedding=6, buckets=64)


def read(frames):
    """Rollout, time step and camera that a painted frame shows, each ``[...]``."""
    corner = frames[..., 0, 0, :].numpy().astype(int)
    return corner[..., 0] // 20, corner[..., 1] // 8, corner[..., 2] // 40


class TestSamples:
    def test_experts_alone_each_from_every_side(self):
        made = recipe()
        assert made.settings["tasks"] == TASKS
        assert made.settings["cameras"] == list(CAMERAS)
        assert [view.tier for rollout in made.rollouts for view in rollout.values()] == ["expert"] * 12

    def test_the_four_time_steps_of_a_sample(self):
        for number in range(60):
            rollout, (i, j, after, k) = recipe().sample(number)
            assert 0 <= i < j < after <= k < len(rollout["corner"].frames)
            assert after == j + 1

    def test_the_pool_is_spread_evenly(self):
        rollouts = [recipe().sample(number)[0]["corner"].seed for number in range(12)]
        assert np.unique(rollouts, return_counts=True)[1].tolist() == [3, 3, 3, 3]

    def test_an_epoch_shows_every_sample_once_and_the_next_one_in_other_views(self):
        made = recipe()
        epochs = []
        for epoch in range(2):
            shown = [made.batch(3 * epoch + place) for place in range(3)]
            numbers, steps, cameras = (np.concatenate(x) for x in zip(*(read(b.frames) for b in shown), strict=True))
            epochs.append({(n[0], *s): tuple(c) for n, s, c in zip(numbers, steps, cameras, strict=True)})
        pool = {(r["corner"].seed, *steps) for r, steps in map(made.sample, range(12))}
        assert set(epochs[0]) == set(epochs[1]) == pool
        assert epochs[0] != epochs[1]
        assert {camera for cameras in epochs[0].values() for camera in cameras} == {0, 1, 2}
        assert any(len(set(cameras)) > 1 for cameras in epochs[0].values())

    def test_one_view_a_sample(self):
        made = recipe(views="sample")
        cameras = np.concatenate([read(made.batch(number).frames)[2] for number in range(6)])
        assert (cameras == cameras[:, :1]).all()
        assert len(np.unique(cameras)) == 3

    def test_every_objective_sees_the_same(self):
        full = recipe("liv").batch(5)
        for objective, chosen in {
            "triplet": [0, 1], "tcn-text": [0, 1], "r3m": [0, 1, 3], "vip-text": [0, 1, 2], "vip-text+vip": [0, 1, 2, 3]
        }.items():  # fmt: skip
            batch = recipe(objective).batch(5)
            assert torch.equal(batch.frames, full.frames[:, chosen]), objective
            assert torch.equal(batch.others, full.others)
            assert torch.equal(batch.foreign, full.foreign)
            assert batch.instructions == full.instructions

    def test_the_sentence_is_one_of_the_task(self):
        made = recipe()
        tasks = {rollout["corner"].seed: rollout["corner"].task for rollout in made.rollouts}
        for number in range(6):
            batch = made.batch(number)
            for rollout, sentence in zip(read(batch.frames)[0][:, 0], batch.instructions, strict=True):
                assert sentence in training_phrasings(tasks[rollout])

    def test_negatives_are_three_others(self):
        others = torch.stack([recipe(batch_size=6).batch(number).others for number in range(20)])
        assert others.shape == (20, 6, NEGATIVES)
        assert (others != torch.arange(6)[:, None]).all()
        assert all(len(set(row.tolist())) == NEGATIVES for row in others.flatten(0, 1))
        assert set(others.flatten().tolist()) == set(range(6))

    def test_negatives_are_of_other_tasks(self):
        tasks = ["push-v3", "reach-v3", "door-close-v3", "window-open-v3"]
        experts = painted_tasks(tasks, each=2, size=8, tiers=("expert",))
        made = EmbeddingRecipe(experts, "r3m", batch_size=12, samples=48)
        found = set()
        for number in range(20):
            batch = made.batch(number)
            task = read(batch.frames)[0][:, 0] // 2
            for row in range(12):
                expected = [other for other in range(12) if task[other] != task[row]]
                assert batch.foreign[row].nonzero()[:, 0].tolist() == expected
                assert set(batch.others[row].tolist()) <= set(expected)
                found |= {(row, other) for other in batch.others[row].tolist()}
        assert len(found) > 0.9 * 12 * 11  # any row serves any other

    def test_a_batch_with_too_few_of_other_tasks(self):
        """Another rollout of the task is the next best, then the sample's own; the sample itself is never one."""
        rng = np.random.default_rng(0)
        for _ in range(20):
            tasks, rollouts = np.array(["push", "push", "push", "reach", "push"]), np.array([0, 0, 1, 2, 3])
            others, foreign = negatives(tasks, rollouts, rng)
            assert [sorted(row) for row in others.tolist()[:2]] == [[2, 3, 4], [2, 3, 4]]
            assert all(3 in row for row in others[[2, 4]].tolist())
            assert 3 not in others[3]
            np.testing.assert_array_equal(foreign[:3], [[0, 0, 0, 1, 0]] * 3)
            np.testing.assert_array_equal(foreign[3:], [[1, 1, 1, 0, 1], [0, 0, 0, 1, 0]])
            others, foreign = negatives(np.array(["push"] * 4), np.array([0, 0, 1, 1]), rng)
            assert [sorted(row) for row in others.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
            np.testing.assert_array_equal(foreign, np.kron([[0, 1], [1, 0]], np.ones((2, 2))))
            others, foreign = negatives(np.array(["push"] * 4), np.zeros(4, np.int64), rng)
            assert (others != np.arange(4)[:, None]).all()
            np.testing.assert_array_equal(foreign, ~np.eye(4, dtype=bool))

    def test_the_negatives_go_along_to_the_device(self):
        moved = recipe("liv").batch(0).to(torch.device("meta"))
        assert {moved.frames.device.type, moved.others.device.type, moved.foreign.device.type} == {"meta"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_whole_model(objective):
    made, model = recipe(objective), tiny()
    parts = made.loss(model, made.batch(0), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    assert set(parts) == {"loss", "ordered"}
    assert 0 <= parts["ordered"] <= 1
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    for name in ("backbone.stem.1.weight", "backbone.words.table.weight", "frame_head.6.weight", "text_head.weight"):
        assert (model.get_parameter(name).grad != 0).any(), name


def test_a_model_without_pixels_gets_the_frames_as_they_are():
    class Plain(torch.nn.Module):
        frame_size = (8, 8)

        def encode_frames(self, frames):
            assert frames.dtype == torch.uint8
            return torch.nn.functional.normalize(frames.float().mean((1, 2)), dim=-1)[:, None]

        def encode_text(self, sentences):
            return torch.nn.functional.normalize(torch.tensor([[[0.0, 1.0, 0.0]]]), dim=-1).expand(len(sentences), 1, 3)

    made = recipe("triplet", views="sample")
    batch = made.batch(0)
    number, step, camera = read(batch.frames)
    colours = np.stack([20 * number, 8 * step, 40 * camera], -1).astype(np.float64)
    green = colours[..., 1] / np.linalg.norm(colours, axis=-1).clip(1e-12)
    parts = made.loss(Plain(), batch, torch.Generator())
    assert parts["loss"].item() == pytest.approx(np.maximum(0, green[:, 0] - green[:, 1] + 0.3).mean(), abs=1e-5)
    assert parts["ordered"].item() == pytest.approx((green[:, 1] > green[:, 0]).mean())


def test_the_loop_trains_it_and_resumes_bit_for_bit(tmp_path):
    config = TrainConfig(steps=4, seed=3, save_every=2)
    model, rest = tiny(), tiny()
    history = train(model, recipe("r3m"), tmp_path / "straight", config, progress_bar=False)
    assert [row["step"] for row in history] == [0, 1, 2, 3]

    class Stops(EmbeddingRecipe):
        def batch(self, number):
            if number == 3:
                raise KeyboardInterrupt
            return super().batch(number)

    torch.manual_seed(0)
    stopped = Stops(ROLLOUTS, "r3m", batch_size=4, samples=12)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), stopped, tmp_path / "resumed", config, progress_bar=False)
    train(rest, recipe("r3m"), tmp_path / "resumed", config, progress_bar=False)
    for name, weight in model.state_dict().items():
        assert torch.equal(rest.state_dict()[name], weight), name
    with pytest.raises(ValueError, match=r"'objective': \('r3m', 'triplet'\)"):
        train(tiny(), recipe("triplet"), tmp_path / "resumed", config, progress_bar=False)


class Colours(torch.nn.Module):
    """The mean colour of a frame; every sentence is another direction."""

    frame_size = (8, 8)

    def encode_frames(self, frames):
        return torch.nn.functional.normalize(1 + frames.float().mean((1, 2)), dim=-1)[:, None]

    def encode_text(self, sentences):
        return torch.eye(3)[[len(sentence) % 3 for sentence in sentences]][:, None]


def test_liv_is_told_which_videos_are_foreign():
    made = recipe("liv", batch_size=6)
    batch = made.batch(1)
    assert batch.foreign.sum() < 30  # some are not
    frames = Colours().encode_frames(batch.frames.flatten(0, 1))[:, 0].unflatten(0, (6, 4)).unbind(1)
    text = Colours().encode_text(batch.instructions)[:, 0]
    loss = made.loss(Colours(), batch, torch.Generator())["loss"].item()
    assert loss == pytest.approx(liv_loss(*frames, text, batch.foreign).item(), abs=1e-6)
    assert loss != pytest.approx(liv_loss(*frames, text).item(), abs=1e-3)


class TestWhatIsRefused:
    def test_an_unknown_objective(self):
        with pytest.raises(ValueError) as caught:
            recipe("clip")
        assert str(caught.value) == (
            "objective: expected one of triplet, tcn-text, r3m, vip-text, vip-text+vip, liv, got 'clip'"
        )

    def test_no_demonstration(self):
        failing = [t for t in ROLLOUTS if t.tier != "expert"]
        with pytest.raises(ValueError) as caught:
            EmbeddingRecipe(failing, "triplet")
        assert str(caught.value) == "expected experts that get their task done, found none in 24 rollouts"

    def test_a_batch_too_small_for_its_negatives(self):
        with pytest.raises(ValueError) as caught:
            recipe(batch_size=3)
        assert str(caught.value) == "batch_size: expected 4 to 12 (the samples), got 3"

    def test_frames_of_two_sizes(self):
        with pytest.raises(ValueError) as caught:
            EmbeddingRecipe([*ROLLOUTS, *painted_tasks(["soccer-v3"], each=1, size=16)], "triplet")
        assert str(caught.value) == "expected frames of one size, got 16 x 16 and 32 x 32"


class TestViews:
    def test_are_put_together_in_order(self):
        rollouts = group_views(reversed(ROLLOUTS))
        assert [list(rollout) for rollout in rollouts] == [list(CAMERAS)] * 12
        keys = [(rollout["corner"].task, rollout["corner"].tier, rollout["corner"].seed) for rollout in rollouts]
        assert keys == sorted(keys)
        assert all(view.camera == camera for rollout in rollouts for camera, view in rollout.items())

    def test_twice(self):
        with pytest.raises(DatasetError) as caught:
            group_views([*ROLLOUTS, ROLLOUTS[0]])
        assert str(caught.value) == "task push-v3, expert, seed 0: the camera corner is there twice"

    def test_missing(self):
        with pytest.raises(DatasetError) as caught:
            group_views(ROLLOUTS[1:])
        assert (
            str(caught.value) == "task push-v3, expert, seed 0: expected a view of every camera, found none of corner"
        )

    def test_of_different_rollouts(self):
        other = replace(ROLLOUTS[0], reward=ROLLOUTS[0].reward + 1)
        with pytest.raises(DatasetError) as caught:
            group_views([other, *ROLLOUTS[1:]])
        assert str(caught.value) == (
            "task push-v3, expert, seed 0: corner and corner2 recorded different rollouts; collect both with the same "
            "options, --camera apart"
        )
