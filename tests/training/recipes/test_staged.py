"""What the staged model learns from a batch of clips, in either stage."""

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
from vlp_gym.training.recipes.stage_clips import StageSampler
from vlp_gym.training.recipes.staged import DOUBT, StagedRecipe, relevance_loss, staged_loss

ROLLOUTS = painted_tasks(["push-v3", "reach-v3"], each=1, size=32)
CONFIG = TrainConfig(steps=3, save_every=2, seed=5)
STAGES = ("approach", "moved", "way", "progress", "rank")


def tiny(seed=0):
    torch.manual_seed(seed)
    return tiny_model()


def sampler(rollouts=ROLLOUTS, clips=3):
    return StageSampler(rollouts, tasks_per_batch=2, clips_per_task=clips, frames_per_clip=4, seed=0)


def run(folder, relevance_steps):
    model = tiny()
    recipe = StagedRecipe(sampler(), relevance_steps)
    return model, train(model, recipe, folder, CONFIG, progress_bar=False)


class TestStages:
    def test_the_total_is_its_weighted_parts(self, tmp_path):
        history = run(tmp_path, 2)[1]
        assert len(history) == 5
        for row in history[:3]:
            expected = row["approach"] + row["moved"] + row["way"] + row["progress"] + 0.5 * row["rank"]
            expected += 10 * row["position"] + 0.5 * row["opposite"] + 0.05 * (row["match"] + row["to_text"])
            assert row["loss"] == pytest.approx(expected, rel=1e-5)
        for row in history[3:]:
            expected = row["to_text"] + row["to_video"] + row["match"] + 0.1 * row["spread"]
            assert row["loss"] == pytest.approx(expected, rel=1e-5)

    def test_the_last_stage_trains_the_relevance_alone(self, tmp_path):
        before, _ = run(tmp_path / "without", 0)
        after, _ = run(tmp_path / "with", 1)
        free = {id(parameter) for parameter in after.relevance_parameters()}
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            assert torch.equal(a, b) != (id(b) in free), name


class TestLoss:
    def batch(self, number=0, clips=3):
        return sampler(clips=clips).batch(number)

    def test_every_trained_weight_gets_a_finite_gradient(self):
        model, generator = tiny().train(), torch.Generator().manual_seed(0)
        for number in range(6):
            staged_loss(model, self.batch(number), generator)["loss"].backward()
        missing = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert missing == []
        assert all(weight.grad.isfinite().all() for weight in model.parameters())

    def test_nothing_known(self):
        batch = self.batch()
        for name in ("approach", "moved", "way", "opposite_way", "timed", "positions"):
            getattr(batch, name)[:] = math.nan
        parts = staged_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert [parts[name].item() for name in (*STAGES, "position", "opposite")] == [0.0] * 7
        assert parts["loss"].isfinite()

    def test_what_cannot_be_told_is_said_not_to_have_moved(self):
        """The same pictures, moved in one half and not in the other: the doubt is four to one."""
        batch = self.batch()
        batch.frames[:] = 128
        batch.moved[:] = torch.tensor([0.0, 1.0]).repeat(2)
        model = tiny().train()
        logit = torch.zeros((), requires_grad=True)
        model.stages = lambda state, text: logit.expand(*state.shape[:2], 3)
        optimizer = torch.optim.Adam([logit], 0.05)
        for _ in range(100):
            optimizer.zero_grad()
            staged_loss(model, batch, torch.Generator().manual_seed(0))["moved"].backward()
            optimizer.step()
        assert logit.sigmoid().item() == pytest.approx(1 / (1 + DOUBT), abs=0.02)

    def test_time_alone_teaches_progress(self):
        batch = self.batch()
        for name in ("approach", "moved", "way", "opposite_way"):
            getattr(batch, name)[:] = math.nan
        batch.timed[:] = torch.linspace(0, 1, 4)
        parts = staged_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert parts["progress"] > 0
        assert parts["rank"] > 0
        assert parts["approach"] == parts["moved"] == parts["way"] == 0

    def test_no_sentence_with_an_opposite(self):
        batch = self.batch()
        batch.opposites[:] = [None, None]
        assert staged_loss(tiny().train(), batch, torch.Generator().manual_seed(0))["opposite"] == 0

    def test_the_sentence_tells_the_direction(self):
        """The same clips go their way under one sentence and no way under the other."""
        batch = self.batch(clips=4)
        batch.instructions[:], batch.opposites[:] = ["open the door"] * 2, ["close the door"] * 2
        model = tiny().train()
        optimizer, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
        for _ in range(80):
            parts = staged_loss(model, batch, generator)
            optimizer.zero_grad()
            torch.stack([parts[name] for name in (*STAGES, "opposite")]).sum().backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            state = model.state(model.encode_frames(batch.frames[:, 0].flatten(0, 1)).unflatten(0, (2, 4)))
            own, other = (model.progress(model.stages(state, model.encode_text([text] * 2)))
                          for text in ("open the door", "close the door"))  # fmt: skip
        done = batch.way[:, 0] == 1
        assert done.any()
        assert own[done].min() > 0.6
        assert other[done].max() < 0.4

    @pytest.mark.parametrize("loss", [staged_loss, relevance_loss])
    def test_other_models(self, loss):
        with pytest.raises(TypeError) as caught:
            loss(torch.nn.Linear(1, 1), self.batch(), torch.Generator())
        assert str(caught.value) == "expected a StagedRewardModel, got Linear"


def test_the_relevance_learns_which_sentence_is_about_which_scene():
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batch = replace(sampler().first_frames(0), sentences=["open the door", "reach up", "shut it"],
                    fits=torch.tensor([[True, False, True], [False, True, False]]).repeat_interleave(4, 0))  # fmt: skip
    for _ in range(80):
        parts = relevance_loss(model, batch, torch.Generator())
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
    assert parts["spread"] < 1
    with torch.inference_mode():
        relevance = model.eval().relevance(model.encode_frames(batch.frames), model.encode_text(batch.sentences))
    assert torch.equal(relevance > 0, batch.fits)


def test_frames_of_another_size_are_those_after_the_models_resize():
    large = sampler(painted_tasks(["push-v3", "reach-v3"], each=1, size=64))
    for loss, batch in ((staged_loss, large.batch(0)), (relevance_loss, large.first_frames(0))):
        frames = batch.frames.flatten(0, -4)
        small = resize_frames(frames, (32, 32)).unflatten(0, batch.frames.shape[:-3])
        given, resized = (
            loss(tiny().eval(), each, torch.Generator().manual_seed(0))
            for each in (batch, replace(batch, frames=small))
        )
        assert {name: part.item() for name, part in given.items()} == pytest.approx(
            {name: part.item() for name, part in resized.items()}
        )
        assert np.isfinite(given["loss"].item())
