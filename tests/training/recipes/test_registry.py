"""Every system by its name, with its published settings; one of another package is a recipe and an entry point."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("tyro")

from rollouts import painted_tasks, write_tasks

from vlp_gym.commands.main import main
from vlp_gym.models.checkpoint import read_model_config
from vlp_gym.training.options import TrainOptions
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes import registry
from vlp_gym.training.recipes.registry import available_recipes, load_options

PUBLISHED = {
    "staged": TrainConfig(steps=1_000),
    "vlp": TrainConfig(steps=15_000, learning_rate=3e-5, weight_decay=0.1, warmup=0.0),  # VLP, table 8
    "joint": TrainConfig(),
    "rewind": TrainConfig(steps=5_000, learning_rate=1e-4),
    "embedding": TrainConfig(steps=2_000),
    "siglip2-lora": TrainConfig(steps=7_810, learning_rate=1e-4),  # 5 epochs of 50,000 samples, 32 at a time
    "spur": TrainConfig(steps=5_000, learning_rate=2e-5, weight_decay=0.0, warmup=0.1),  # SPUR, table 5
}


@pytest.mark.parametrize("system", PUBLISHED)
def test_defaults(system):
    assert load_options(system)(data=()).config() == PUBLISHED[system]


def test_liv_trains_siglip2_more_slowly_unless_told():
    """Learning objectives, appendix A.1."""
    options = load_options("siglip2-lora")
    assert options(data=(), objective="liv").config() == TrainConfig(steps=7_810, learning_rate=1e-5)
    assert options(data=(), objective="liv", learning_rate=2e-4).config().learning_rate == 2e-4
    assert load_options("embedding")(data=(), objective="liv").config().learning_rate == 1e-3


def test_every_system_has_a_line_and_options():
    assert list(available_recipes()) == list(PUBLISHED)
    for system, line in available_recipes().items():
        assert 10 < len(line) < 60
        assert issubclass(load_options(system), TrainOptions)


def test_unknown():
    with pytest.raises(ValueError) as caught:
        load_options("siglip2")
    assert str(caught.value) == (
        "unknown system 'siglip2': expected one of staged, vlp, joint, rewind, embedding, siglip2-lora, spur; "
        "did you mean siglip2-lora?"
    )
    with pytest.raises(ValueError, match=r"^unknown system 'xyz': expected one of staged, .*, spur$"):
        load_options("xyz")


THEIR_MODEL = """
import torch
from torch import nn
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.protocol import frame_scores


class Brightness(nn.Module, CheckpointMixin):
    model_type, window, history, frame_size = "brightness", 4, "prefix", (8, 8)

    def __init__(self, *, gain: float = 1.0):
        super().__init__()
        self.config = {"gain": gain}
        self.level = nn.Parameter(torch.tensor(gain))

    def encode_text(self, instructions):
        return torch.ones(len(instructions), 1, 1)

    def encode_frames(self, frames):
        return frames.float().mean((1, 2, 3))[:, None, None] / 255

    def score(self, frames, text, mask):
        return frame_scores(self.level * frames[:, :, 0, 0], mask)
"""
THEIR_RECIPE = '''
from dataclasses import dataclass
import numpy as np
import torch
from their_model import Brightness
from vlp_gym.training.options import TrainOptions
from vlp_gym.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class BrightnessOptions(TrainOptions):
    """Progress is what shines.

    Attributes:
        gain: brightness to start from.
    """

    steps: int = 4
    gain: float = 2.0

    def build(self, trajectories):
        return Brightness(gain=self.gain), BrightnessRecipe(trajectories, self.seed)


class BrightnessRecipe(Recipe):
    def __init__(self, trajectories, seed):
        self.trajectories, self.seed, self.settings = trajectories, seed, {"recipe": "brightness"}

    def batch(self, number):
        rng = np.random.default_rng([self.seed, number])
        return torch.from_numpy(self.trajectories[rng.integers(len(self.trajectories))].frames)

    def loss(self, model, batch, generator):
        values = model.score(model.encode_frames(batch)[None], None, torch.ones(1, len(batch))).progress[0]
        return {"loss": ((values - torch.linspace(0, 1, len(batch))) ** 2).mean()}
'''


def test_another_packages_system(tmp_path, monkeypatch, capsys):
    """A file for the model, one for the recipe, and a line: the entry point."""
    (tmp_path / "their_model.py").write_text(THEIR_MODEL)
    (tmp_path / "their_recipe.py").write_text(THEIR_RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("brightness", "their_recipe:BrightnessOptions", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "vlp_gym.recipes" else [])
    assert available_recipes()["brightness"] == "entry point their_recipe:BrightnessOptions"
    assert "their_recipe" not in sys.modules

    with pytest.raises(SystemExit):
        main(["train", "brightness", "--help"])
    shown = capsys.readouterr().out
    assert "Progress is what shines." in shown
    assert "brightness to start from. (default: 2.0)" in shown
    write_tasks(tmp_path / "data", painted_tasks(["push-v3"], each=1))
    train = ["train", "brightness", "--data", str(tmp_path / "data"), "--tasks", "push-v3", "--gain", "3"]
    assert main([*train, "--out", str(tmp_path / "run")]) == 0
    assert read_model_config(tmp_path / "run")["config"]["gain"] == 3.0
    assert "checkpoint: " in capsys.readouterr().out
