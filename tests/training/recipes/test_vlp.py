"""What VLP learns from a batch of clips: pairs of known order, of the clips that are encoded."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from rollouts import painted_tasks
from tiny import tiny_model

from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.vlp import VLPModel
from vlp_gym.training.recipes.clips import ClipSampler
from vlp_gym.training.recipes.vlp import MixedRecipe

TASKS = ["door-open-v3", "push-v3", "reach-v3", "window-open-v3"]
GROUPS, CLIPS, DIM = 4, 5, 6
RECIPE = MixedRecipe(
    ClipSampler(painted_tasks(TASKS, each=1, size=32), tasks_per_batch=GROUPS, clips_per_task=CLIPS, window=4, seed=0)
)


class Linear(VLPModel):
    """f(v|l) = v' W l of the frames' mean colours and a vector of the sentence, in float64; keeps what it encodes."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, DIM, dtype=torch.float64, generator=generator))
        self.encoded = []

    def encode_frames(self, frames):
        self.encoded.append(frames)
        return frames.double().mean((1, 2))[:, None] / 255

    def encode_text(self, instructions):
        return torch.from_numpy(np.stack([sentence_vector(sentence) for sentence in instructions]))[:, None]

    def score(self, frames, text, mask):
        video = (frames[:, :, 0] * mask[..., None]).sum(1)
        return type("Scores", (), {"preference": torch.einsum("bd,de,be->b", video, self.weight, text[:, 0])})


def drawn(number):
    """A batch; red in the corner of each frame says which clip it is from."""
    batch = RECIPE.batch(number)
    batch.frames[..., 0, 0, 0] = torch.arange(GROUPS * CLIPS, dtype=torch.uint8).view(GROUPS, CLIPS, 1)
    return batch


def sentence_vector(sentence):
    return np.random.default_rng(list(sentence.encode())).normal(size=DIM)


def plain(frames, generator):
    """Stands where the augmentation should: pixels as they are."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255


def loss_and_gradient(model, batch, seed=0):
    model.zero_grad()
    parts = RECIPE.loss(model, batch, torch.Generator().manual_seed(seed))
    parts["loss"].backward()
    return {name: value.item() for name, value in parts.items()}, model.weight.grad.clone().numpy()


def expected(batch, shown, weight):
    """Eq. 4 and its gradient from the frames that were shown, ``[G, 2, T, H, W, 3]``, in float64; and the orders."""
    video = shown.numpy().mean((3, 4), dtype=np.float64).sum(2) / 255  # [G, 2, 3]
    text = np.stack([sentence_vector(sentence) for sentence in batch.instructions])
    chosen = (shown[:, :, 0, 0, 0, 0] % CLIPS).tolist()  # see `drawn`
    sums = {name: [0.0, np.zeros_like(weight), 0] for name in ("itp", "ilp", "ivp_a", "ivp_b")}

    def add(name, better, worse, sentence, target=1.0):
        phi = np.outer(better - worse, sentence)
        p = 1 / (1 + np.exp(-(phi * weight).sum()))
        sums[name][0] -= target * np.log(p) + (1 - target) * np.log(1 - p)
        sums[name][1] = sums[name][1] + (p - target) * phi
        sums[name][2] += 1

    orders = []
    for g in range(GROUPS):
        a, b = video[g]
        first, second = chosen[g]
        tiers, paid = batch.tier[g].double().numpy(), batch.segment_return[g].double().numpy()
        if np.isfinite(tiers[[first, second]]).all():
            order = np.sign(tiers[first] - tiers[second])
        elif np.isfinite(paid[[first, second]]).all():
            order = np.sign(paid[first] - paid[second])
        else:
            order = None
        orders.append(order)
        if order is not None:
            add("itp", a, b, text[g], (order + 1) / 2)
        add("ilp", a, b, text[g - 1], 0.5)
        for shift in range(1, GROUPS):
            add("ivp_a", a, video[g - shift, 0], text[g])
            add("ivp_b", b, video[g - shift, 0], text[g])
    means = {name: (total / max(count, 1), gradient / max(count, 1)) for name, (total, gradient, count) in sums.items()}
    itp, ilp = means["itp"], means["ilp"]
    ivp = tuple(one + other for one, other in zip(means["ivp_a"], means["ivp_b"], strict=True))
    loss, gradient = (itp[k] + 0.1 * ilp[k] + 0.5 * ivp[k] for k in (0, 1))
    return {"loss": loss, "itp": itp[0], "ilp": ilp[0], "ivp": ivp[0]}, gradient, orders


def test_pairs_of_unknown_order_count_for_nothing(monkeypatch):
    """Among batches as they are drawn: loss and gradient are those of the known pairs, computed apart in float64."""
    monkeypatch.setattr("vlp_gym.training.recipes.vlp.augment_clips", plain)
    seen = []
    for number in range(40):
        model, batch = Linear(), drawn(number)
        parts, gradient = loss_and_gradient(model, batch, seed=number)
        shown = model.encoded[0].unflatten(0, (GROUPS, 2, -1))
        wanted, slope, orders = expected(batch, shown, model.weight.detach().numpy())
        assert parts == pytest.approx(wanted, rel=1e-9)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)
        seen += orders
    assert {-1, 0, 1, None} == set(seen)


def test_no_pair_of_known_order(monkeypatch):
    """The other two terms still teach."""
    monkeypatch.setattr("vlp_gym.training.recipes.vlp.augment_clips", plain)
    batch = drawn(0)
    batch.tier[:] = batch.segment_return[:] = math.nan
    model = Linear()
    parts, gradient = loss_and_gradient(model, batch)
    shown = model.encoded[0].unflatten(0, (GROUPS, 2, -1))
    wanted, slope, orders = expected(batch, shown, model.weight.detach().numpy())
    assert orders == [None] * GROUPS
    assert parts == pytest.approx(wanted, rel=1e-9)
    assert parts["itp"] == 0
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_only_the_clips_that_are_used_are_encoded():
    """Two a task: both are in the pairs, and the first of the other tasks are the negatives."""
    model, batch = Linear(), RECIPE.batch(0)
    parts = RECIPE.loss(model, batch, torch.Generator().manual_seed(0))
    (frames,) = model.encoded
    assert len(frames) == GROUPS * 2 * batch.frames.shape[2]
    assert frames.dtype == torch.uint8
    assert frames.shape[1:] == batch.frames.shape[3:]
    assert all(value.isfinite() for value in parts.values())


def test_any_two_clips_of_a_task_can_be_the_pair(monkeypatch):
    monkeypatch.setattr("vlp_gym.training.recipes.vlp.augment_clips", plain)
    batch, pairs = drawn(0), set()
    for seed in range(200):
        model = Linear()
        RECIPE.loss(model, batch, torch.Generator().manual_seed(seed))
        shown = model.encoded[0].unflatten(0, (GROUPS, 2, -1))[..., 0, 0, 0, 0].tolist()
        pairs |= {(a, b) for a, b in shown}
    assert pairs == {(g * CLIPS + a, g * CLIPS + b) for g in range(GROUPS) for a, b in permutations(range(CLIPS), 2)}


def test_every_trained_weight_gets_a_finite_gradient():
    torch.manual_seed(0)
    model = VLPModel(SmallBackbone(32, 16, 64), window=4, self_attention_layers=1, heads=8, head=(16,)).train()
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        RECIPE.loss(model, RECIPE.batch(number), generator)["loss"].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_other_models():
    with pytest.raises(TypeError) as caught:
        RECIPE.loss(tiny_model(), RECIPE.batch(0), torch.Generator())
    assert str(caught.value) == "expected a VLPModel, got StagedRewardModel"
