"""The training loop: it learns, it resumes bit for bit, and it says what is wrong."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from rollouts import painted_tasks
from tiny import tiny_model

from vlp_gym.errors import CheckpointError
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.vlp import VLPModel
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.training.loop import schedule, train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.clips import ClipSampler
from vlp_gym.training.recipes.compact import RELEVANCE_WEIGHT, batch_loss

ROLLOUTS = painted_tasks(["push-v3", "reach-v3"], each=1, size=32)
CONFIG = TrainConfig(
    steps=3, relevance_steps=1, tasks_per_batch=2, clips_per_task=3, focus=("push-v3",), save_every=2, seed=5
)


def tiny(seed=0):
    torch.manual_seed(seed)
    return tiny_model()


def tiny_vlp(seed=0):
    torch.manual_seed(seed)
    return VLPModel(SmallBackbone(32, 16, 64), window=4, self_attention_layers=1, heads=8, head=(16,))


def run(folder, config=CONFIG, model=None, seed=0):
    model = tiny(seed) if model is None else model
    return model, train(model, ROLLOUTS, folder, config, progress_bar=False)


def numbers(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(folder, model, history) of four steps without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, *run(folder)


class TestResume:
    def test_bit_for_bit(self, straight, tmp_path, monkeypatch):
        """Killed in the third step, before it is counted; the state of step two is on disk."""
        _, model, history = straight
        calls = []

        def interrupted(*inputs, **options):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return batch_loss(*inputs, **options)

        monkeypatch.setattr("vlp_gym.training.recipes.compact.batch_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        monkeypatch.undo()
        assert not (tmp_path / "config.json").exists()
        torch.rand(7)  # whatever happens in between
        resumed, again = run(tmp_path, seed=99)  # the weights that it starts from do not matter
        assert numbers(again) == numbers(history)
        for name, weight in model.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight), name

    def test_a_finished_run_is_not_trained_on(self, straight):
        folder, model, history = straight
        again, rows = run(folder, seed=99)
        assert rows == history
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

    def test_other_settings_are_refused(self, straight):
        folder, model, _ = straight
        with pytest.raises(ValueError) as caught:
            run(folder, TrainConfig(**{**vars(CONFIG), "steps": 5, "seed": 6, "save_every": 1}))
        assert str(caught.value) == (
            f"{folder} holds a run with other settings (then, now): {{'steps': (3, 5), 'seed': (5, 6)}}; "
            "choose another --out"
        )
        assert torch.equal(next(load_reward_model(folder).parameters()), next(model.parameters()))

    def test_another_focus_is_refused(self, straight, tmp_path):
        """Also where the state was saved by a version that had none."""
        folder = shutil.copytree(straight[0], tmp_path / "older")
        with pytest.raises(ValueError, match=r"'focus': \(\['push-v3'\], \[\]\)"):
            run(folder, TrainConfig(**{**vars(CONFIG), "focus": ()}))
        document, tensors = read_pair(folder, stem="training")
        del document["extra"]["config"]["focus"]
        write_pair(folder, document, tensors, stem="training")
        with pytest.raises(ValueError, match=r"'focus': \(\[\], \['push-v3'\]\)"):
            run(folder)

    def test_another_config_of_the_model_is_refused(self, straight, tmp_path):
        """What a saved state leaves out, such as frozen weights, is told apart by the config alone."""
        folder = shutil.copytree(straight[0], tmp_path / "older")
        torch.manual_seed(0)
        other = tiny_model(quality_weight=7.0)
        assert straight[1].config["quality_weight"] == 12.0
        with pytest.raises(ValueError) as caught:
            run(folder, model=other)
        assert str(caught.value) == (
            f"{folder} holds a run with other settings (then, now): {{'model.quality_weight': (12.0, 7.0)}}; "
            "choose another --out"
        )
        document, tensors = read_pair(folder, stem="training")
        del document["extra"]["config"]["model"]  # as an older version saved it
        write_pair(folder, document, tensors, stem="training")
        _, history = run(folder, model=other)
        assert history == straight[2]

    def test_a_model_without_a_config_resumes(self, tmp_path):
        """The tensors alone say then that it is the same."""
        config = TrainConfig(**{**vars(CONFIG), "steps": 2})
        histories = []
        for _ in range(2):
            with pytest.raises(CheckpointError, match="cannot be saved: name the backbone by a string"):
                run(tmp_path, config, tiny_vlp())
            histories.append(json.loads((tmp_path / "history.json").read_text()))
        assert histories[0] == histories[1]

    def test_other_tasks_are_refused(self, straight):
        """A model that claims not to have seen a task must not have been trained on it before the stop."""
        folder, _, _ = straight
        others = painted_tasks(["push-v3", "window-open-v3"], each=1, size=32)
        with pytest.raises(ValueError) as caught:
            train(tiny(), others, folder, CONFIG, progress_bar=False)
        assert str(caught.value) == (
            f"{folder} holds a run with other settings (then, now): "
            "{'tasks': (['push-v3', 'reach-v3'], ['push-v3', 'window-open-v3'])}; choose another --out"
        )


class TestTraining:
    def test_what_it_leaves(self, straight):
        folder, model, history = straight
        assert [row["step"] for row in history] == [0, 1, 2, 3]
        assert json.loads((folder / "history.json").read_text()) == history
        assert (folder / "training.png").stat().st_size > 1000
        loaded = load_reward_model(folder)
        assert not loaded.training
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))

    def test_the_total_is_its_weighted_parts(self, straight):
        sampler = ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=4, window=8, seed=0)
        batch = next(batch for batch in map(sampler.batch, range(50)) if batch.expert.any(1).all())
        batch.opposites[:] = ["shut it", None]
        both = (batch_loss(tiny().train(), batch, torch.Generator(), relevance_only=last) for last in (False, True))
        forced = [{name: part.item() for name, part in parts.items()} for parts in both]
        assert min(min(row.values()) for row in forced) > 0
        for row in [{**forced[0], "step": 0}, {**forced[1], "step": CONFIG.steps}, *straight[2]]:
            names = ("to_text", "to_video", "match", "scene_to_text", "scene_match")
            relevance = sum(row[name] for name in names)
            relevance += 0.3 * sum(row[f"opposite_{name}"] for name in ("to_video", "match", "choice"))
            progress = row["progress"] + row["frame_rank"] + row["tier"] + 0.5 * row["segment"]
            progress += row["opposite_moved"] + row["opposite_nearing"]
            first_stage = progress + 10 * row["position"] + RELEVANCE_WEIGHT * relevance
            assert row["loss"] == pytest.approx(first_stage if row["step"] < CONFIG.steps else relevance, rel=1e-5)

    def test_the_last_stage_trains_the_relevance_alone(self, tmp_path):
        config = TrainConfig(**{**vars(CONFIG), "relevance_steps": 0})
        before, _ = run(tmp_path / "without", config)
        after, _ = run(tmp_path / "with", CONFIG)
        free = {id(parameter) for parameter in after.relevance_parameters()}
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            assert torch.equal(a, b) != (id(b) in free), name

    def test_the_seed_decides(self, straight, tmp_path):
        _, history = run(tmp_path, TrainConfig(**{**vars(CONFIG), "steps": 1, "seed": 6}))
        assert history[0]["loss"] != straight[2][0]["loss"]

    def test_it_learns(self, tmp_path):
        """Two painted tasks of four rollouts are learnt by heart in a few steps."""
        longer = {"steps": 40, "relevance_steps": 0, "learning_rate": 3e-3, "save_every": 99}
        _, history = run(tmp_path, TrainConfig(**{**vars(CONFIG), **longer}))
        losses = [row["loss"] for row in history]
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])

    def test_the_papers_model_by_the_same_call(self, tmp_path):
        model = tiny_vlp()
        before = [weight.clone() for weight in model.parameters()]
        with pytest.raises(CheckpointError, match="cannot be saved: name the backbone by a string"):
            run(tmp_path, TrainConfig(**{**vars(CONFIG), "steps": 2}), model)  # trained; a live backbone has no config
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        history = json.loads((tmp_path / "history.json").read_text())
        for row in history:
            assert row["loss"] == pytest.approx(row["itp"] + 0.1 * row["ilp"] + 0.5 * row["ivp"], rel=1e-5)

    def test_a_loss_that_is_not_finite_stops_it(self, tmp_path, monkeypatch):
        def broken(model, *_, **__):
            return {"loss": next(model.parameters()).sum() * math.nan}

        monkeypatch.setattr("vlp_gym.training.recipes.compact.batch_loss", broken)
        with pytest.raises(FloatingPointError) as caught:
            run(tmp_path)
        assert str(caught.value) == (
            f"training step 0: the loss is nan; lower --learning-rate. {tmp_path} holds the last saved state"
        )

    def test_schedule(self):
        """Up over a tenth of the steps, then half a cosine down to a hundredth."""
        config = TrainConfig(steps=100, relevance_steps=50, warmup=0.1)
        factors = [schedule(step, config) for step in range(100)]
        assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
        expected = 0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(90) / 90)) / 2
        assert factors[10:] == pytest.approx(expected)
        assert schedule(100, config) == pytest.approx(1 / 5)  # and once more
        assert schedule(105, config) == pytest.approx(1)


class TestLoss:
    def batch(self, number=0):
        return ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=3, window=4, seed=0).batch(number)

    @pytest.mark.parametrize("make", [tiny, tiny_vlp])
    def test_every_trained_weight_gets_a_finite_gradient(self, make):
        model, generator = make().train(), torch.Generator().manual_seed(0)
        for number in range(6):
            batch_loss(model, self.batch(number), generator)["loss"].backward()
        missing = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert missing == []
        assert all(weight.grad.isfinite().all() for weight in model.parameters())

    def test_no_expert_clip_to_reverse(self):
        batch = self.batch()
        batch.expert[:] = False
        parts = batch_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert all(value.isfinite() for value in parts.values())

    def test_no_tier_and_no_progress_known(self):
        batch = self.batch()
        batch.tier[:] = batch.progress[:] = math.nan
        parts = batch_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
        assert parts["tier"] == parts["progress"] == 0
        assert parts["loss"].isfinite()

    def test_no_sentence_with_an_opposite(self):
        batch = self.batch()
        batch.opposites[:] = [None, None]
        parts = batch_loss(tiny().train(), batch, torch.Generator().manual_seed(0))
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
            parts = batch_loss(model, batch, generator)
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
            parts = batch_loss(model, batch, torch.Generator(), relevance_only=True)
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
            parts = batch_loss(model, batch, torch.Generator(), relevance_only=True)
            optimizer.zero_grad()
            torch.stack([parts[name] for name in names]).sum().backward()
            scene = [*model.scene_head.parameters(), *model.text_scene.parameters()]
            assert all(weight.grad is None for weight in scene)
            optimizer.step()
            history.append([parts[name].item() for name in names])
        assert (np.mean(history[-5:], 0) < 0.5 * np.mean(history[:2], 0)).all(), history[-5:]

    def test_other_models(self):
        with pytest.raises(TypeError) as caught:
            batch_loss(torch.nn.Linear(1, 1), self.batch(), torch.Generator())
        assert str(caught.value) == "expected a model with a training objective (compact, vlp), got Linear"
