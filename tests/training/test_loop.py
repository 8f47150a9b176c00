"""The training loop: it learns, it resumes bit for bit, and it says what is wrong."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from rollouts import painted_tasks
from tiny import tiny_model

from tests.two_weights import Batch, TwoWeights
from vlp_gym.errors import CheckpointError
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.vlp import VLPModel
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.training import log, loop
from vlp_gym.training.loop import schedule, train
from vlp_gym.training.recipe import Recipe, Stage, TrainConfig
from vlp_gym.training.recipes.clips import ClipSampler
from vlp_gym.training.recipes.stage_clips import StageSampler
from vlp_gym.training.recipes.staged import StagedRecipe
from vlp_gym.training.recipes.vlp import MixedRecipe

ROLLOUTS = painted_tasks(["push-v3", "reach-v3"], each=1, size=32)
CONFIG = TrainConfig(steps=3, save_every=2, seed=5)
UNNAMED = "cannot be saved: name the backbone by a string"  # after the training: a live backbone has no config


def tiny(seed=0):
    torch.manual_seed(seed)
    return tiny_model()


def tiny_vlp(seed=0):
    torch.manual_seed(seed)
    return VLPModel(SmallBackbone(32, 16, 64), window=4, self_attention_layers=1, heads=8, head=(16,))


def sampler(rollouts=ROLLOUTS, seed=5, kind=StageSampler):
    return kind(rollouts, tasks_per_batch=2, clips_per_task=3, frames_per_clip=4, seed=seed)


def pairs(focus=()):
    return MixedRecipe(ClipSampler(ROLLOUTS, tasks_per_batch=2, clips_per_task=3, window=4, seed=5, focus=focus))


def run(folder, config=CONFIG, model=None, seed=0, recipe=None):
    model = tiny(seed) if model is None else model
    recipe = StagedRecipe(sampler(), relevance_steps=1) if recipe is None else recipe
    return model, train(model, recipe, folder, config, progress_bar=False)


def numbers(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(folder, model, history) of four steps without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, *run(folder)


class TestResume:
    def test_bit_for_bit(self, straight, tmp_path):
        """Killed in the last step, before it is counted; the state of step two is on disk."""
        _, model, history = straight

        class Interrupted(StageSampler):
            def first_frames(self, number):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, recipe=StagedRecipe(sampler(kind=Interrupted), relevance_steps=1))
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

    def test_another_focus_is_refused(self, tmp_path):
        """Also where the state was saved by a version that had none."""
        config = TrainConfig(**{**vars(CONFIG), "steps": 1})
        with pytest.raises(CheckpointError, match=UNNAMED):
            run(tmp_path, config, tiny_vlp(), recipe=pairs(["push-v3"]))
        with pytest.raises(ValueError, match=r"'focus': \(\['push-v3'\], \[\]\)"):
            run(tmp_path, config, tiny_vlp(), recipe=pairs())
        document, tensors = read_pair(tmp_path, stem="training")
        del document["extra"]["config"]["focus"]
        write_pair(tmp_path, document, tensors, stem="training")
        with pytest.raises(ValueError, match=r"'focus': \(\[\], \['push-v3'\]\)"):
            run(tmp_path, config, tiny_vlp(), recipe=pairs(["push-v3"]))

    def test_another_seed_of_the_recipe_is_refused(self, straight, tmp_path):
        """Also where the state was saved by a version that had one seed for all."""
        folder = shutil.copytree(straight[0], tmp_path / "older")
        document, tensors = read_pair(folder, stem="training")
        del document["extra"]["config"]["recipe_seed"]
        write_pair(folder, document, tensors, stem="training")
        assert run(folder)[1] == straight[2]
        for where in (straight[0], folder):
            with pytest.raises(ValueError, match=r"\(then, now\): {'recipe_seed': \(5, 6\)}; choose another --out$"):
                run(where, recipe=StagedRecipe(sampler(seed=6), relevance_steps=1))

    def test_a_history_that_is_none_is_refused(self, straight, tmp_path):
        folder = shutil.copytree(straight[0], tmp_path / "changed")
        document, tensors = read_pair(folder, stem="training")
        for extra, steps, message in (  # 3 steps and 1 of relevance
            ({"history": [1]}, 3, "history.0: expected a valid dictionary, got 1"),
            ({"history": document["extra"]["history"][1:]}, 2, "extra.history.0: expected step 0, loss and seconds"),
            ({"history": document["extra"]["history"]}, 2, "step: expected 4, the length of the history, got 2"),
        ):
            changed = {**document, "step": steps, "extra": {**document["extra"], **extra}}
            write_pair(folder, changed, tensors, stem="training")
            with pytest.raises(CheckpointError, match=f"^{re.escape(f'{folder}/training.json: {message}')}$"):
                run(folder)

    def test_another_config_of_the_model_is_refused(self, straight, tmp_path):
        """What a saved state leaves out, such as frozen weights, is told apart by the config alone."""
        folder = shutil.copytree(straight[0], tmp_path / "older")
        torch.manual_seed(0)
        other = tiny_model(sharpness=7.0)
        assert straight[1].config["sharpness"] == 10.0
        with pytest.raises(ValueError) as caught:
            run(folder, model=other)
        assert str(caught.value) == (
            f"{folder} holds a run with other settings (then, now): {{'model.sharpness': (10.0, 7.0)}}; "
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
            with pytest.raises(CheckpointError, match=UNNAMED):
                run(tmp_path, config, tiny_vlp(), recipe=pairs())
            histories.append(json.loads((tmp_path / "history.json").read_text()))
        assert histories[0] == histories[1]

    def test_other_tasks_are_refused(self, straight):
        """A model that claims not to have seen a task must not have been trained on it before the stop."""
        folder, _, _ = straight
        others = painted_tasks(["push-v3", "window-open-v3"], each=1, size=32)
        with pytest.raises(ValueError) as caught:
            run(folder, recipe=StagedRecipe(sampler(others), relevance_steps=1))
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

    def test_the_seed_decides(self, straight, tmp_path):
        """That of the config augments, that of the recipe draws the batches."""
        once = TrainConfig(**{**vars(CONFIG), "steps": 1})
        _, history = run(tmp_path / "augmented", TrainConfig(**{**vars(once), "seed": 6}))
        assert history[0]["loss"] != straight[2][0]["loss"]
        _, history = run(tmp_path / "drawn", once, recipe=StagedRecipe(sampler(seed=6), relevance_steps=1))
        assert history[0]["loss"] != straight[2][0]["loss"]

    def test_it_learns(self, tmp_path):
        """Two painted tasks of four rollouts are learnt by heart in a few steps."""
        longer = TrainConfig(steps=40, learning_rate=3e-3, save_every=99, seed=5)
        _, history = run(tmp_path, longer, recipe=StagedRecipe(sampler(), relevance_steps=0))
        losses = [row["loss"] for row in history]
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])

    def test_the_papers_model_by_the_same_call(self, tmp_path):
        """It is trained; a live backbone has no config to save."""
        model = tiny_vlp()
        before = [weight.clone() for weight in model.parameters()]
        with pytest.raises(CheckpointError, match=UNNAMED):
            run(tmp_path, TrainConfig(**{**vars(CONFIG), "steps": 2}), model, recipe=pairs())
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        history = json.loads((tmp_path / "history.json").read_text())
        for row in history:
            assert row["loss"] == pytest.approx(row["itp"] + 0.1 * row["ilp"] + 0.5 * row["ivp"], rel=1e-5)

    def test_a_loss_that_is_not_finite_stops_it(self, tmp_path, monkeypatch):
        def broken(model, *_, **__):
            return {"loss": next(model.parameters()).sum() * math.nan}

        monkeypatch.setattr("vlp_gym.training.recipes.staged.staged_loss", broken)
        with pytest.raises(FloatingPointError) as caught:
            run(tmp_path)
        assert str(caught.value) == (
            f"training step 0: the loss is nan; lower --learning-rate. {tmp_path} holds the last saved state"
        )

    def test_schedule(self):
        """Up over a tenth of the steps, then half a cosine down to a hundredth."""
        factors = [schedule(step, 100, 0.1) for step in range(100)]
        assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
        expected = 0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(90) / 90)) / 2
        assert factors[10:] == pytest.approx(expected)
        assert schedule(0, 50, 0.1) == pytest.approx(1 / 5)
        assert schedule(5, 50, 0.1) == pytest.approx(1)


class Staged(Recipe):
    """Three stages: both weights, the first alone with the submodule at rest, both again."""

    def __init__(self):
        self.settings, self.seen = {}, []

    def batch(self, number):
        return Batch()

    def stages(self, model, steps):
        return [Stage(steps, self.loss), Stage(3, self.other, [model.first], [model.inner]), Stage(2, self.loss)]

    def loss(self, model, batch, generator):
        self.seen.append(("loss", model.second.requires_grad, model.inner.training, model.training))
        return {"loss": model.first**2 + model.second**2}

    def other(self, model, batch, generator):
        self.seen.append(("other", model.second.requires_grad, model.inner.training, model.training))
        return {"loss": 2 * model.first**2 + 3 * model.second**2}


class TestStages:
    @pytest.fixture(autouse=True)
    def _no_files_but_the_state(self, monkeypatch):
        monkeypatch.setattr(loop, "save_checkpoint", lambda *_, **__: None)
        monkeypatch.setattr(loop, "_write_history", lambda *_: None)

    def test_each_has_its_loss_its_weights_and_its_schedule(self, tmp_path, monkeypatch):
        asked, weights = [], []
        monkeypatch.setattr(loop, "save_training_state", lambda *_, **__: weights.append(model.second.item()))
        monkeypatch.setattr(loop, "schedule", lambda *given: asked.append(given) or schedule(*given))
        model, recipe = TwoWeights(), Staged()
        config = TrainConfig(steps=2, warmup=0.5, save_every=1)
        history = train(model, recipe, tmp_path, config, progress_bar=False)
        first, second = ("loss", True, True, True), ("other", False, False, True)
        assert recipe.seen == [first] * 2 + [second] * 3 + [first] * 2
        assert asked == [(k, steps, 0.5) for steps in (2, 3, 2) for k in range(steps)]
        assert [row["step"] for row in history] == list(range(7))
        assert len(set(weights[1:5])) == 1  # after steps 2 to 5: at rest, and not decayed either
        assert len(set(weights)) == 4
        assert model.second.requires_grad
        assert not model.inner.training

    def test_a_run_goes_on_in_the_middle_of_one(self, tmp_path):
        class Stopped(Staged):
            def batch(self, number):
                if number == 3:
                    raise KeyboardInterrupt
                return super().batch(number)

        config, recipe = TrainConfig(steps=2, save_every=1), Staged()
        history = train(TwoWeights(), recipe, tmp_path / "straight", config, progress_bar=False)
        with pytest.raises(KeyboardInterrupt):
            train(TwoWeights(), Stopped(), tmp_path / "stopped", config, progress_bar=False)
        rest = Staged()
        again = train(TwoWeights(), rest, tmp_path / "stopped", config, progress_bar=False)
        assert numbers(again) == numbers(history)
        assert rest.seen == recipe.seen[3:]

    def test_the_loop_knows_no_model_and_no_recipe(self):
        tree = ast.parse(Path(loop.__file__).read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        ours = {name for name in imported if name.startswith(("vlp_gym.models", "vlp_gym.training"))}
        assert ours == {"vlp_gym.models.checkpoint"} | {
            f"vlp_gym.training.{name}" for name in ("early_stopping", "log", "recipe", "state")
        }


class TestLog:
    def test_every_step_is_in_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        _, history = run(tmp_path, replace(CONFIG, log="tensorboard"))
        (written,) = (tmp_path / "vlp_gym").glob("events.*")
        events = EventAccumulator(str(written)).Reload()
        shown = [(event.step, event.value) for event in events.Scalars("loss")]
        assert shown == [(row["step"], pytest.approx(row["loss"])) for row in history]
        assert len(events.Scalars("learning_rate")) == len(history) == 4

    def test_a_log_may_be_added_to_a_run(self, tmp_path, straight):
        pytest.importorskip("tensorboard")
        shutil.copytree(straight[0], tmp_path / "run")
        _, history = run(tmp_path / "run", replace(CONFIG, log="tensorboard"))
        assert numbers(history) == numbers(straight[2])

    @pytest.mark.parametrize("name", ["wandb", "trackio"])
    def test_offline(self, name, tmp_path):
        pytest.importorskip(name)
        code = (
            "import sys; sys.path[:0] = ['.', 'tests']\n"
            "from pathlib import Path\n"
            "import warnings; warnings.simplefilter('ignore')\n"
            "from training import test_loop as t\n"
            "t.run(Path(sys.argv[2]), t.replace(t.CONFIG, log=sys.argv[1]))\n"
        )
        offline = {
            "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1",
            "WANDB_CACHE_DIR": str(tmp_path / "cache"), "WANDB_DATA_DIR": str(tmp_path / "data"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, name, tmp_path / "run"], env={**os.environ, **offline},
            cwd=Path(__file__).parents[2], text=True, capture_output=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db", ".db-wal")]
        data = b"".join(path.read_bytes() for path in files)
        assert b"learning_rate" in data
        assert b"relevance_steps" in data  # the settings

    def test_what_cannot_be_started_is_said_before_the_first_step(self, tmp_path):
        class Broken:
            def init_trackers(self, *args, **options):
                raise RuntimeError("no login")

        with (
            pytest.raises(ValueError) as caught,
            log.open_log(Broken(), "wandb", tmp_path, {}),
        ):
            pytest.fail("a step was made")
        assert str(caught.value) == (
            "--log wandb: it could not be started (no login); log in, or set WANDB_MODE=offline"
        )
