"""VLP as published: what a batch is made of, its loss by hand, its optimizer, and resuming."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from rollouts import BLUE, painted
from tiny import tiny_model
from tiny_clip import add_mini_clips

from vlp_gym.data.trajectory import EXPLORE, TIERS
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.vlp import VLPModel
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.vlp_published import PublishedRecipe
from vlp_gym.training.token_files import TokenFiles

TASKS = ["door-open-v3", "push-v3", "reach-v3"]
ROLLOUTS = [  # four of each task and tier
    painted(task, tier, 4 * t + k, frames=16 + k, size=32)
    for t, task in enumerate(TASKS)
    for tier in TIERS
    for k in range(4)
]
TIER_OF = {BLUE[tier]: rank for rank, tier in enumerate(TIERS)}


def small_model(window=8, dropout=0.1):
    torch.manual_seed(0)
    return VLPModel(
        SmallBackbone(32, 16, 64), window=window, self_attention_layers=1, heads=8, head=(16,), dropout=dropout
    )


def task_of(sentence, recipe):
    return [task for task in TASKS if sentence in recipe.sentences[task]]


def test_a_batch_is_about_one_task():
    """Pairs of whole videos of one task, labelled by tier; everything of other tasks is a negative or a sentence."""
    recipe, orders = PublishedRecipe(ROLLOUTS, pairs=5, negatives=3), set()
    known = {rollout.frames.tobytes(): rollout for rollout in ROLLOUTS}
    pieces = {
        rollout.frames[np.linspace(0, len(rollout.frames) - 1, 8).round().astype(int)].tobytes(): rollout
        for rollout in known.values()
    }
    for number in range(30):
        batch = recipe.batch(number)
        shown = [pieces[video.numpy().tobytes()] for video in batch.videos]
        assert len({id(each) for each in shown}) == len(shown)  # each of them once
        assert batch.mask.all()
        assert (batch.pairs.shape, batch.negatives.shape) == ((5, 2), (5, 3))
        (task,) = {shown[i].task for i in batch.pairs.flatten()}
        assert task not in {shown[i].task for i in batch.negatives.flatten()}
        for (a, b), label in zip(batch.pairs.tolist(), batch.label.tolist(), strict=True):
            assert a != b
            ranks = [TIERS.index(shown[i].tier) for i in (a, b)]
            assert label == (0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1]))
            orders.add(label)
        assert all(task in task_of(sentence, recipe) for sentence in batch.instructions)
        assert all(task_of(sentence, recipe) and task not in task_of(sentence, recipe) for sentence in batch.foreign)
    assert orders == {0, 0.5, 1}


def test_only_tiers_with_an_order_are_used():
    wandering = [painted(TASKS[0], EXPLORE, 12, size=32) for _ in range(50)]
    recipe = PublishedRecipe([*wandering, *ROLLOUTS], pairs=8)
    for number in range(20):
        assert set(recipe.batch(number).videos[..., 2].flatten().tolist()) <= TIER_OF.keys()


def test_short_videos_are_masked_in_front():
    rollouts = [painted(task, tier, frames=14, size=32) for task in TASKS for tier in TIERS]
    batch = PublishedRecipe(rollouts, window=16, pairs=2).batch(0)
    assert batch.mask.tolist() == [[False, False, *[True] * 14]] * len(batch.mask)


def test_batches_depend_on_their_number_and_the_seed_alone():
    first, again, other = (PublishedRecipe(ROLLOUTS, seed=seed) for seed in (3, 3, 4))
    for number in (5, 0):
        a, b, c = (recipe.batch(number) for recipe in (first, again, other))
        assert torch.equal(a.videos, b.videos)
        assert (a.instructions, a.foreign) == (b.instructions, b.foreign)
        assert a.instructions != c.instructions


def test_a_smaller_share_is_part_of_a_larger_one():
    shares = [PublishedRecipe(ROLLOUTS, data_share=share, seed=1).by_task for share in (0.1, 0.5, 0.75, 1.0)]
    for task, tier in itertools.product(TASKS, range(3)):
        used = [list(share[task][tier]) for share in shares]
        assert [len(each) for each in used] == [1, 2, 3, 4]
        assert all(set(less) < set(more) for less, more in itertools.pairwise(used))


def test_the_loss_is_equation_4():
    """Each score asked for alone, the sums and logarithms by hand."""
    model = small_model().eval()
    recipe = PublishedRecipe(ROLLOUTS, pairs=3, negatives=2, lambda_ilp=0.3, lambda_ivp=0.7)
    batch = recipe.batch(1)

    def f(video, sentence):
        tokens = model.encode_frames(batch.videos[video])[None]
        return model.score(tokens, model.encode_text([sentence]), torch.ones(1, 8, dtype=bool)).preference.item()

    def cross_entropy(better, worse, target):
        p = 1 / (1 + np.exp(worse - better))
        return -target * np.log(p) - (1 - target) * np.log(1 - p)

    itp, ilp, ivp_a, ivp_b = [], [], [], []
    for row, (a, b) in enumerate(batch.pairs.tolist()):
        own, foreign = batch.instructions[row], batch.foreign[row]
        itp.append(cross_entropy(f(a, own), f(b, own), batch.label[row].item()))
        ilp.append(cross_entropy(f(a, foreign), f(b, foreign), 0.5))
        for negative in batch.negatives[row].tolist():
            ivp_a.append(cross_entropy(f(a, own), f(negative, own), 1))
            ivp_b.append(cross_entropy(f(b, own), f(negative, own), 1))
    with torch.no_grad():
        parts = recipe.loss(model, batch, torch.Generator())
    wanted = {"itp": np.mean(itp), "ilp": np.mean(ilp), "ivp": np.mean(ivp_a) + np.mean(ivp_b)}
    wanted["loss"] = wanted["itp"] + 0.3 * wanted["ilp"] + 0.7 * wanted["ivp"]
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(wanted, rel=1e-4)


def test_each_frame_is_encoded_once(monkeypatch):
    model, recipe = small_model(), PublishedRecipe(ROLLOUTS)
    batch, encoded = recipe.batch(0), []
    encode = model.backbone.encode_frames
    monkeypatch.setattr(model.backbone, "encode_frames", lambda frames: encoded.append(frames) or encode(frames))
    recipe.loss(model, batch, torch.Generator())["loss"].backward()
    (frames,) = encoded
    assert len(np.unique(frames.flatten(1).numpy(), axis=0)) == len(frames) == 8 * len(batch.videos)
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_weight_decay_is_on_linear_weights_alone():
    """A step without gradients moves what decays, by learning rate times decay."""
    model, config = small_model(), TrainConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = PublishedRecipe(ROLLOUTS).optimizer(model, config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {"head.0.weight", "self_video.0.attention.query.weight"} <= linear < before.keys()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if name in linear else 1), msg=name)


def test_it_learns_the_tiers_and_resumes_bit_for_bit(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    assert accelerate
    from vlp_gym.training.loop import train
    from vlp_gym.training.recipes.vlp import VLPOptions

    class Interrupted(PublishedRecipe):
        def batch(self, number):
            if number == 25:
                raise KeyboardInterrupt
            return super().batch(number)

    options = VLPOptions(data=(tmp_path,), backbone="small", steps=30, learning_rate=3e-3, save_every=10, pairs=4)

    def run(folder, kind=PublishedRecipe):
        torch.manual_seed(0)
        model = VLPModel("small", window=4, self_attention_layers=1, head=(16,), frame_size=32, dropout=0.0)
        return train(model, kind(ROLLOUTS, window=4, pairs=4), folder, options.config(), progress_bar=False), model

    history, model = run(tmp_path / "straight")
    assert np.mean([row["loss"] for row in history[-8:]]) < np.mean([row["loss"] for row in history[:8]])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Interrupted)
    again, resumed = run(tmp_path / "broken")
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_token_files_change_nothing_but_the_work(tmp_path, monkeypatch):
    """Half precision aside; the tower is asked once for each video, and never in a step."""
    pytest.importorskip("open_clip")
    add_mini_clips(tmp_path)
    torch.manual_seed(0)
    model = VLPModel("open_clip:mini-vit", self_attention_layers=1, heads=4, head=(16,)).eval()
    plain, kept = (
        PublishedRecipe(ROLLOUTS, pairs=4, tokens=tokens) for tokens in (None, TokenFiles(tmp_path / "tokens"))
    )
    kept.prepare(model, progress_bar=False)
    assert len(list((tmp_path / "tokens").iterdir())) == len(ROLLOUTS)
    with torch.no_grad():
        wanted = plain.loss(model, plain.batch(0), torch.Generator())
        monkeypatch.setattr(model.backbone, "encode_frames", None)
        found = kept.loss(model, kept.batch(0), torch.Generator())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_other_models():
    recipe = PublishedRecipe(ROLLOUTS)
    with pytest.raises(TypeError) as caught:
        recipe.loss(tiny_model(), recipe.batch(0), torch.Generator())
    assert str(caught.value) == "expected a VLPModel, got StagedRewardModel"
