"""What the compact model learns from a batch of clips, in either stage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from rollouts import painted_tasks
from tiny import tiny_model

from vlp_gym.frames.resize import resize_frames
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.clips import ClipSampler
from vlp_gym.training.recipes.compact import RELEVANCE_WEIGHT, CompactRecipe, compact_loss, relevance_loss

ROLLOUTS = painted_tasks(["push-v3", "reach-v3"], each=1, size=32)
CONFIG = TrainConfig(steps=3, save_every=2, seed=5)


def tiny(seed=0):
    torch.manual_seed(seed)
    return tiny_model()


def run(folder, relevance_steps):
    sampler = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=3, window=4, seed=5, focus=("push-v3",))
    model = tiny()
    return model, train(model, CompactRecipe(sampler, relevance_steps), folder, CONFIG, progress_bar=False)


class TestStages:
    def test_the_total_is_its_weighted_parts(self, tmp_path):
        sampler = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=4, window=8, seed=0)
        batch = next(batch for batch in map(sampler.batch, range(50)) if batch.expert.any(1).all())
        batch.opposites[:] = ["shut it", None]
        both = (loss(tiny().train(), batch, torch.Generator()) for loss in (compact_loss, relevance_loss))
        forced = [{name: part.item() for name, part in parts.items()} for parts in both]
        assert min(min(row.values()) for row in forced) > 0
        for row in [{**forced[0], "step": 0}, {**forced[1], "step": CONFIG.steps}, *run(tmp_path, 1)[1]]:
            names = ("to_text", "to_video", "match", "scene_to_text", "scene_match")
            relevance = sum(row[name] for name in names)
            relevance += 0.3 * sum(row[f"opposite_{name}"] for name in ("to_video", "match", "choice"))
            progress = row["progress"] + row["frame_rank"] + row["tier"] + 0.5 * row["segment"]
            progress += row["opposite_moved"] + row["opposite_nearing"]
            first_stage = progress + 10 * row["position"] + RELEVANCE_WEIGHT * relevance
            assert row["loss"] == pytest.approx(first_stage if row["step"] < CONFIG.steps else relevance, rel=1e-5)

    def test_the_last_stage_trains_the_relevance_alone(self, tmp_path):
        before, _ = run(tmp_path / "without", 0)
        after, _ = run(tmp_path / "with", 1)
        free = {id(parameter) for parameter in after.relevance_parameters()}
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            assert torch.equal(a, b) != (id(b) in free), name


class TestLoss:
    def batch(self, number=0):
        return ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=3, window=4, seed=0).batch(number)

    def test_every_trained_weight_gets_a_finite_gradient(self):
        model, generator = tiny().train(), torch.Generator().manual_seed(0)
        for number in range(6):
            compact_loss(model, self.batch(number), generator)["loss"].backward()
        missing = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert missing == []
        assert all(weight.grad.isfinite().all() for weight in model.parameters())

    def test_no_expert_clip_to_reverse(self):
        batch = self.batch()
        batch.expert[:] = False
        parts = compact_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert all(value.isfinite() for value in parts.values())

    def test_no_tier_and_no_progress_known(self):
        batch = self.batch()
        batch.tier[:] = batch.progress[:] = math.nan
        parts = compact_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert parts["tier"] == parts["progress"] == 0
        assert parts["loss"].isfinite()

    def test_no_sentence_with_an_opposite(self):
        batch = self.batch()
        batch.opposites[:] = [None, None]
        parts = compact_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert {name: value.item() for name, value in parts.items() if "opposite" in name} == {
            "opposite_moved": 0, "opposite_nearing": 0,
            "opposite_to_video": 0, "opposite_match": 0, "opposite_choice": 0,
        }  # fmt: skip
        assert parts["loss"].isfinite()

    def test_the_opposite_sentence_learns_the_opposite_direction(self):
        """Green grows with the clock: what is moved counts forwards under one sentence, backwards under the other."""
        sampler = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=4, window=8, seed=0)
        batch = next(
            batch
            for batch in map(sampler.batch, range(50))
            if min((~batch.moved.isnan()).sum(), (~batch.nearing.isnan()).sum()) > 5
        )
        batch.instructions[:], batch.opposites[:] = ["open the door"] * 2, ["close the door"] * 2
        model = tiny().train()
        optimizer, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
        names, history = ("frame_rank", "opposite_moved", "opposite_nearing"), []
        for _ in range(60):
            parts = compact_loss(model, batch, generator)
            optimizer.zero_grad()
            torch.stack([parts[name] for name in names]).sum().backward()
            optimizer.step()
            history.append([parts[name].item() for name in names])
        assert np.mean(history[:2], 0) == pytest.approx([np.log(2)] * 3, abs=0.1)
        assert (np.mean(history[-5:], 0) < 0.5).all(), history[-5:]

    def test_the_opposite_sentence_is_about_the_same_scene(self):
        batch = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=4, window=8, seed=0).batch(0)
        batch.instructions[:], batch.opposites[:] = ["open the door", "reach up"], ["shut it", None]
        model = tiny().train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(60):
            parts = relevance_loss(model, batch, torch.Generator())
            optimizer.zero_grad()
            (parts["scene_to_text"] + parts["scene_match"]).backward()
            optimizer.step()
        tokens = model.encode_frames(batch.frames[:, 0].flatten(0, 1)).unflatten(0, (*batch.frames.shape[:1], -1))
        clips = model.eval().features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        doors, reaches = model.scene_relevance(clips, model.encode_text(["open the door", "shut it"]))
        assert (doors > 0).all()
        assert (reaches < 0).all()
        assert abs(doors[0] - doors[1]) < 1

    def test_the_opposite_sentence_is_told_by_the_motion_alone(self):
        sampler = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=4, window=8, seed=0)
        batch = next(batch for batch in map(sampler.batch, range(50)) if batch.expert.any(1).all())
        batch.instructions[:], batch.opposites[:] = ["open the door", "reach up"], ["close the door", None]
        model = tiny().train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        names, history = ("opposite_to_video", "opposite_match", "opposite_choice"), []
        for _ in range(60):
            parts = relevance_loss(model, batch, torch.Generator())
            optimizer.zero_grad()
            torch.stack([parts[name] for name in names]).sum().backward()
            scene = [*model.scene_head.parameters(), *model.text_scene.parameters()]
            assert all(weight.grad is None for weight in scene)
            optimizer.step()
            history.append([parts[name].item() for name in names])
        assert (np.mean(history[-5:], 0) < 0.5 * np.mean(history[:2], 0)).all(), history[-5:]

    @pytest.mark.parametrize("loss", [compact_loss, relevance_loss])
    def test_other_models(self, loss):
        with pytest.raises(TypeError) as caught:
            loss(torch.nn.Linear(1, 1), self.batch(), torch.Generator())
        assert str(caught.value) == "expected a CompactRewardModel, got Linear"


def test_frames_of_another_size_are_those_after_the_models_resize():
    large = painted_tasks(["push-v3", "reach-v3"], each=1, size=64)
    batch = ClipSampler(large, tasks_per_batch=2, clips_per_task=3, window=4, seed=0).batch(0)
    shape = batch.frames.shape
    small = resize_frames(batch.frames.flatten(0, 2), (32, 32)).unflatten(0, shape[:3])
    for loss in (compact_loss, relevance_loss):
        given, resized = (
            loss(tiny().eval(), each, torch.Generator().manual_seed(0))
            for each in (batch, replace(batch, frames=small))
        )
        assert {name: part.item() for name, part in given.items()} == pytest.approx(
            {name: part.item() for name, part in resized.items()}
        )
