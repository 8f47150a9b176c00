"""Early stopping: the weights of the lowest held-out loss, the steps that are left out, and going on after a stop."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("accelerate")

from tests.two_weights import Batch, TwoWeights
from vlp_gym.errors import CheckpointError
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.training import early_stopping, loop
from vlp_gym.training.early_stopping import lowest, next_step, stage_of
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import Recipe, Stage, TrainConfig

CONFIG = TrainConfig(steps=9, learning_rate=0.05, weight_decay=0.0, save_every=1, hold_out=0.5, patience=2)


def rows(*losses, first=0):
    """A history with these held-out losses, None where none was measured."""
    return [
        {"step": first + number, **({} if loss is None else {"held_out": loss})} for number, loss in enumerate(losses)
    ]


def test_the_lowest_of_a_stage():
    history = [*rows(0.1, 0.5), *rows(None, 3.0, 2.0, 2.0, None, 4.0, first=7)]
    assert lowest(history, 7) == (2.0, 9, 2)
    assert lowest(history, 0) == (0.1, 0, 5)
    assert [stage_of(step, [0, 3, 3, 5]) for step in (0, 2, 3, 4)] == [(0, 3), (0, 3), (3, 5), (3, 5)]


@pytest.mark.parametrize(
    ("losses", "follows"),
    [
        ((), 0),
        ((1.0,), 1),
        ((1.0, 2.0), 2),
        ((1.0, 2.0, 3.0), 8),  # two measurements without a lower one
        ((1.0, 2.0, 0.5), 3),
        ((1.0, 1.0, 1.0), 8),  # an equal one is none
        ((1.0, None, 2.0, None), 4),
        ((3.0, 2.0, 2.5, None, 2.6), 8),
    ],
)
def test_what_follows(losses, follows):
    assert next_step(rows(*losses), [8, 20], patience=2) == follows
    assert next_step(rows(*losses), [8, 20], patience=0) == len(losses)


def test_another_stage_does_not_count():
    history = [*rows(1.0, 2.0, 3.0), *rows(9.0, 9.5, first=8)]
    assert next_step(history, [8, 20], patience=2) == 10
    assert next_step([*history, *rows(9.5, first=10)], [8, 20], patience=2) == 20


class Falling(Recipe):
    """Two stages, whose losses pull first one weight, then the other from 1 to 0."""

    def __init__(self, aims=(0.0, 0.0), stop=None):
        self.settings, self.aims, self.stop, self.modes = {}, aims, stop, set()

    def stages(self, model, steps):
        return [Stage(steps, self.loss), Stage(6, self.other, [model.second])]

    def batch(self, number):
        if number == self.stop:
            raise KeyboardInterrupt
        return Batch()

    def loss(self, model, batch, generator):
        self.modes.add(model.inner.training)
        return {"loss": (model.first - self.aims[0]) ** 2}

    def other(self, model, batch, generator):
        return {"loss": (model.second - self.aims[1]) ** 2}


HELD = (0.85, 0.75)  # where the held-out episodes would have them


@pytest.fixture(autouse=True)
def _no_files_but_the_state(monkeypatch):
    """A model of two weights has no config to save."""
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr(loop, "_write_history", lambda *_: None)


def run(folder, stop=None, config=CONFIG, progress_bar=False):
    model, recipe, held = TwoWeights(), Falling(stop=stop), Falling(HELD)
    return model, train(model, recipe, folder, config, held_out=held, progress_bar=progress_bar), recipe, held


def test_the_best_weights_are_kept(tmp_path, capsys):
    model, history, recipe, held = run(tmp_path, progress_bar=True)
    steps = [row["step"] for row in history]
    assert steps == sorted(set(steps))
    first, second = ([row for row in history if (row["step"] < 9) == early] for early in (True, False))
    assert len(first) < 9
    assert second[0]["step"] == 9
    for stage, weight, aim in ((first, model.first, HELD[0]), (second, model.second, HELD[1])):
        losses = [row["held_out"] for row in stage]
        assert (weight.item() - aim) ** 2 == pytest.approx(min(losses), rel=1e-4)
        assert losses.index(min(losses)) >= len(losses) - 1 - CONFIG.patience
    assert (recipe.modes, held.modes) == ({True}, {False})
    best = min(first, key=lambda row: row["held_out"])
    assert (
        f"step {len(first)}: the held-out loss was lowest after step {best['step'] + 1}, {best['held_out']:.4g}: its "
        f"weights are kept; {9 - len(first)} of 9 steps were left"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("stop", [1, 2, 3, 9, 10, 11, 12])
@pytest.mark.parametrize("save_every", [1, 3])
def test_resumes_bit_for_bit(stop, save_every, tmp_path):
    config = TrainConfig(**{**vars(CONFIG), "save_every": save_every, "patience": 1})
    model, history, *_ = run(tmp_path / "straight", config=config)
    if stop in [row["step"] for row in history]:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", stop, config)
    again, resumed, *_ = run(tmp_path / "stopped", config=config)
    unsaid = [
        [{name: v for name, v in row.items() if name != "seconds"} for row in each] for each in (history, resumed)
    ]
    assert unsaid[0] == unsaid[1]
    assert (again.first.item(), again.second.item()) == (model.first.item(), model.second.item())
    finished, rows_, recipe, _ = run(tmp_path / "stopped", config=config)
    assert rows_ == resumed
    assert not recipe.modes  # it is not trained on
    assert finished.first.item() == model.first.item()


def test_without_patience_the_last_weights(tmp_path):
    model, history, _, held = run(tmp_path, config=TrainConfig(**{**vars(CONFIG), "patience": 0}))
    assert [row["step"] for row in history] == list(range(15))
    assert not held.modes
    assert model.first.item() < HELD[0] - 0.05


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError) as caught:
        train(TwoWeights(), Falling(), tmp_path, CONFIG, progress_bar=False)
    assert str(caught.value) == "--patience: expected with --hold-out, whose episodes it looks at"
    run(tmp_path)
    document, tensors = read_pair(tmp_path, stem="training")
    for steps, message in (
        ([0, 2], "1: expected step 1"),
        ([1], "0: expected step 0"),
        ([0, 99], "1: expected step 1"),
    ):
        history = [{"step": step, "loss": 1.0, "seconds": 0.1} for step in steps]
        extra = {**document["extra"], "history": history}
        write_pair(tmp_path, {**document, "extra": extra, "step": len(steps)}, tensors, stem="training")
        with pytest.raises(CheckpointError, match=f"history.{message}, loss and seconds$"):
            run(tmp_path)
    write_pair(tmp_path, document, {**tensors, "best.first": torch.ones(())}, stem="training")
    with pytest.raises(CheckpointError, match=r"best\.second"):
        run(tmp_path)


def test_a_held_out_loss_that_is_not_finite(tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        train(TwoWeights(), Falling(), tmp_path, CONFIG, held_out=Falling((float("nan"), 0.0)), progress_bar=False)
    assert str(caught.value) == "the loss on the held-out episodes is nan; lower --learning-rate"
    assert early_stopping.BATCHES > 1
