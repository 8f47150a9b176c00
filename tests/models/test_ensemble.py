"""Several reward models as one: ranks, mean and least, calibration, and what is kept of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rollouts import painted_tasks
from tiny import tiny_model

from vlp_gym.errors import CheckpointError
from vlp_gym.evaluation.calibration import calibrate
from vlp_gym.models import several
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.ensemble import EnsembleModel, _rank
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.vlp import VLPModel
from vlp_gym.storage import write_pair
from vlp_gym.testing import PaintedModel, check_reward_model

ROLLOUTS = painted_tasks(["push-v3", "reach-v3"], each=2, size=32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model with progress and relevance, and one that has a preference alone."""
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(0)
    save_checkpoint(tiny_model(), folder / "staged")
    save_checkpoint(VLPModel("small", window=3, self_attention_layers=1, heads=8, head=(16,)), folder / "vlp")
    return [str(folder / "staged"), str(folder / "vlp")]


def asked(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (6, 40, 40, 3), generator=generator, dtype=torch.uint8)
    tokens = model.encode_frames(frames).unflatten(0, (2, 3))
    return tokens, model.encode_text(["push it", "reach for the goal"]), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "min", "lower"])
def test_it_is_a_reward_model(folders, reduce, calibrated):
    model = load_reward_model(f"ensemble:{reduce}|{folders[0]}|{folders[1]}")
    if calibrated:
        calibrate(model, ROLLOUTS, progress_bar=False)
    check_reward_model(model)
    assert (model.window, model.history, model.frame_size) == (4, "prefix", (112, 112))


def lower(ranks, axis):
    return np.maximum(np.mean(ranks, axis=axis) - np.std(ranks, axis=axis), 0)


@torch.no_grad()
@pytest.mark.parametrize(("reduce", "function"), [("mean", np.mean), ("min", np.min), ("lower", lower)])
def test_ranks_are_those_of_the_calibration(folders, reduce, function):
    model = EnsembleModel(folders, reduce)
    rng = np.random.default_rng(0)
    seen, liked = rng.normal(0.2, 0.3, (2, 500)), rng.normal(0, 2, (2, 300))
    model.calibrate(seen, liked)
    scores = model.score(*asked(model))
    said = model.ask(*asked(model))
    steps = np.linspace(0, 1, 101)

    def rank(values, calibration):
        return np.interp(values.double().numpy(), np.quantile(calibration, steps), steps)

    values = function([rank(value, own) for (_, value), own in zip(said, seen, strict=True)], axis=0)
    liking = function([rank(each.preference, own) for (each, _), own in zip(said, liked, strict=True)], axis=0)
    np.testing.assert_allclose(scores.progress.numpy(), values, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), liking, atol=1e-5)
    staged, vlp = said
    assert model.encode_frames(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape == (2, 1, 4 * 16 + 49 * 128)
    gated = staged[0].progress * torch.sigmoid(staged[0].relevance)[:, None]
    torch.testing.assert_close(staged[1], gated)
    torch.testing.assert_close(vlp[1], vlp[0].preference[:, None].expand(2, 3))


@torch.no_grad()
def test_members_say_what_they_say_alone(folders):
    model = EnsembleModel(folders)
    frames = torch.randint(0, 256, (3, 50, 50, 3), dtype=torch.uint8)
    tokens, mask = model.encode_frames(frames)[None], torch.ones(1, 3, dtype=torch.bool)
    said = model.ask(tokens, model.encode_text(["push it"]), mask)
    for name, (scores, _) in zip(folders, said, strict=True):
        alone = load_reward_model(name)
        expected = alone.score(alone.encode_frames(frames)[None], alone.encode_text(["push it"]), mask)
        torch.testing.assert_close(scores.preference, expected.preference)


def test_before_a_calibration_the_range_is_stretched():
    class Cosine(PaintedModel):
        value_range = (-1.0, 3.0)

    model = EnsembleModel(["a", "b"], models=[Cosine(), PaintedModel()])
    tokens, mask = model.encode_frames(torch.full((2, 8, 8, 3), 64, dtype=torch.uint8))[None], torch.ones(1, 2).bool()
    scores = model.score(tokens, model.encode_text(["push it"]), mask)
    value = PaintedModel().score(tokens[..., :1, :], torch.zeros(1, 1, 1), mask).progress
    torch.testing.assert_close(scores.progress, ((value + 1) / 4 + value) / 2)


@torch.no_grad()
def test_it_is_kept_with_its_ranks(folders, tmp_path):
    model = EnsembleModel(folders, "min")
    calibrate(model, ROLLOUTS, progress_bar=False)
    model.save_pretrained(tmp_path)
    again = load_reward_model(tmp_path)
    assert again.config == {"members": folders, "reduce": "min"}
    assert torch.equal(again.progress_ranks, model.progress_ranks)
    torch.testing.assert_close(again.score(*asked(again)).progress, model.score(*asked(model)).progress)


def test_a_value_that_many_have_is_above_the_smaller_ones_alone(folders):
    model = EnsembleModel(folders)
    many = np.concatenate([np.zeros(60), np.linspace(0.01, 1, 40)])
    model.calibrate(np.stack([many, many]), np.stack([many, many]))
    ranks = _rank(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]), model.progress_ranks[0], (0, 1))
    np.testing.assert_allclose(ranks, [0.0, 0.0, np.mean(many < 0.5), 1.0, 1.0], atol=0.02)


def test_no_more_than_some_sentences_are_kept(folders, monkeypatch):
    monkeypatch.setattr(several, "MAX_TEXTS", 3)
    model = EnsembleModel(folders)
    tokens, text, mask = asked(model)
    before = model.score(tokens, text, mask)
    for number in range(9):
        model.encode_text([f"press button {number}"])
        assert len(model._texts) <= 4
    assert torch.equal(model.score(tokens, text, mask).progress, before.progress)


@pytest.mark.parametrize("member", ["gvl:x?base_url=http://127.0.0.1:9", "ensemble:mean|vlp-compact|topreward:x"])
def test_a_checkpoint_does_not_decide_where_frames_go(folders, tmp_path, member):
    """Its author could otherwise have them, and the key of whoever loads it, sent anywhere."""
    document = {"model_type": "ensemble", "format_version": 1, "config": {"members": ["vlp-compact", member]}}
    document["config"]["reduce"] = "mean"
    write_pair(tmp_path, document, EnsembleModel(folders).checkpoint_state(), stem="model")
    with pytest.raises(CheckpointError, match=r"a checkpoint may not name a model on an endpoint, such as '"):
        load_reward_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"a checkpoint may not name a model on an endpoint, such as '"):
        load_reward_model(f"ensemble:mean|vlp-compact|{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ensemble:median|a|b", r"^reduce must be one of \('mean', 'min', 'lower'\), got 'median'$"),
        ("ensemble:mean|vlp-compact", r"^an ensemble needs at least 2 members, got \['vlp-compact'\]$"),
        ("ensemble:mean|vlp-compact|vlp-compat", r"^unknown reward model 'vlp-compat': "),
    ],
)
def test_what_cannot_be_made(name, message):
    with pytest.raises(ValueError, match=message):
        load_reward_model(name)


def test_what_cannot_be_calibrated(folders):
    model = EnsembleModel(folders)
    with pytest.raises(ValueError, match=r"^trajectories: expected at least one, got none$"):
        calibrate(model, [])
    fine = np.random.default_rng(0).normal(size=(2, 9))
    for progress, message in [
        (fine[:1], r"^progress: expected \[2, N\] values, got \[1, 9\]$"),
        (fine * np.nan, r"^progress: expected finite values$"),
        (fine * [[1], [0]], rf"^progress: all values of {folders[1]} are alike; calibrate on more videos$"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.calibrate(progress, fine)
    assert not model.progress_ranks.any()
