"""What SPUR learns from: painted pairs that say where they come from, targets derived anew; and that it does learn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from rollouts import SUCCESS_AT, painted, painted_tasks
from tiny_qwen import tiny_qwen2_5

from vlp_gym.data.trajectory import ALL_TIERS
from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.spur import SPURModel
from vlp_gym.objectives.spur import spur_loss
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.spur import RATIOS, STRATEGIES, SPUROptions, SPURRecipe, clock, cut

TASKS = ["push-v3", "reach-v3", "door-open-v3"]
ROLLOUTS = painted_tasks(TASKS, each=1)
ONLY = {name: tuple(float(name == other) for other in STRATEGIES) for name in STRATEGIES}


def drawn(strategy, count=200, rollouts=ROLLOUTS):
    """Many (task, preferred clip, other clip) of one strategy."""
    recipe, rng = SPURRecipe(rollouts, ratios=ONLY[strategy]), np.random.default_rng(0)
    return [recipe.pair(strategy, rng) for _ in range(count)]


def on_the_way(clip):
    """Progress by eq. 2 for a clip of a successful rollout: t / T from the clip's first frame to the first success."""
    first, total = clip.frames[0], SUCCESS_AT + 1 - clip.frames[0]
    return [min((frame - first + 1) / total, 1.0) for frame in clip.frames]


class TestStrategies:
    def test_expertise(self):
        for task, better, worse in drawn("expertise"):
            good, bad = ROLLOUTS[better.rollout], ROLLOUTS[worse.rollout]
            assert good.task == bad.task == task
            assert good.success.any()
            assert not bad.success.any()
            np.testing.assert_allclose(better.progress, on_the_way(better))
            assert np.isnan(worse.progress).all()
            assert better.frames.tolist() == list(range(better.frames[0], len(good.frames)))
            assert worse.frames.tolist() == list(range(worse.frames[0], len(bad.frames)))

    def test_task(self):
        seen = set()
        for task, better, worse in drawn("task"):
            own, foreign = ROLLOUTS[better.rollout], ROLLOUTS[worse.rollout]
            assert own.task == task != foreign.task
            seen.add((own.success.any(), foreign.success.any()))
            if foreign.success.any():
                assert (worse.progress == 0).all()
            else:
                assert np.isnan(worse.progress).all()
            if own.success.any():
                np.testing.assert_allclose(better.progress, on_the_way(better))
            else:
                assert np.isnan(better.progress).all()
        assert len(seen) == 4

    def test_rewind(self):
        """Forward one by one, then backward one by one, never before the clip's start; the target walks back too."""
        depths = set()
        for _, better, worse in drawn("rewind"):
            assert better.rollout == worse.rollout
            assert better.frames[0] == worse.frames[0]
            assert ROLLOUTS[worse.rollout].success.any()
            steps = np.diff(worse.frames)
            forward = int((steps == 1).sum())
            assert steps.tolist() == [1] * forward + [-1] * (len(steps) - forward)
            assert 1 <= len(steps) - forward <= forward
            assert worse.frames.max() <= SUCCESS_AT
            np.testing.assert_allclose(worse.progress, on_the_way(worse))
            assert worse.progress[-1] < worse.progress.max()
            np.testing.assert_allclose(better.progress, on_the_way(better))
            assert better.frames[-1] == len(ROLLOUTS[better.rollout].frames) - 1
            depths.add((forward, len(steps) - forward))
        assert any(back == forward for forward, back in depths)  # some go all the way back
        assert max(forward for forward, _ in depths) == SUCCESS_AT

    def test_subsequence(self):
        for _, better, worse in drawn("subsequence"):
            assert better.rollout == worse.rollout
            assert len(worse.frames) < len(better.frames)
            assert better.frames[: len(worse.frames)].tolist() == worse.frames.tolist()
            np.testing.assert_allclose(better.progress, on_the_way(better))
            np.testing.assert_allclose(worse.progress, on_the_way(worse))
            assert worse.progress[-1] < better.progress[-1] <= 1

    def test_the_first_frame_is_from_the_first_half(self):
        """Of the way to success (frames 0 to 12), or of a failed rollout of 16 frames."""
        starts = {True: Counter(), False: Counter()}
        for _, better, worse in drawn("expertise", 600):
            starts[True][int(better.frames[0])] += 1
            starts[False][int(worse.frames[0])] += 1
        assert set(starts[True]) == set(range(6))
        assert set(starts[False]) == set(range(8))

    def test_a_way_of_three_frames(self):
        """The shortest that can be rewound: frames 0 to 2, of which the first half is frame 0."""
        short = painted("push-v3", "expert", 1, 16)
        short = type(short)(**{**vars(short), "success": np.arange(16) >= 2})
        for _, _, worse in drawn("rewind", 50, [short]):
            assert worse.frames.tolist() in ([0, 1, 0], [0, 1, 2, 1], [0, 1, 2, 1, 0])

    def test_clock_and_cut_by_hand(self):
        """Frames 2 to 5 and two back, of a rollout done at frame 6: times 1 2 3 4 3 2 of T = 5."""
        assert clock(4, 2).tolist() == [1, 2, 3, 4, 3, 2]
        clip = cut(0, 2, 6, clock(4, 2))
        assert clip.frames.tolist() == [2, 3, 4, 5, 4, 3]
        assert clip.progress.tolist() == [0.2, 0.4, 0.6, 0.8, 0.6, 0.4]
        assert cut(0, 2, 6, clock(7)).progress.tolist() == [0.2, 0.4, 0.6, 0.8, 1, 1, 1]


class TestBatches:
    def test_shapes(self):
        batch = SPURRecipe(ROLLOUTS, batch_size=5, frames=8).batch(0)
        assert batch.frames.shape == (5, 2, 8, 16, 16, 3)
        assert batch.frames.dtype == torch.uint8
        assert batch.mask.shape == batch.progress.shape == (5, 2, 8)
        assert batch.label.shape == batch.strategy.shape == (5,)
        assert batch.label.dtype == batch.progress.dtype == torch.float32
        assert len(batch.instructions) == 5

    def test_the_same_number_is_the_same_batch(self):
        once, twice = SPURRecipe(ROLLOUTS, seed=3), SPURRecipe(ROLLOUTS, seed=3)
        once.batch(0)
        a, b = once.batch(4), twice.batch(4)
        assert a.instructions == b.instructions
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.progress.nan_to_num(-1), b.progress.nan_to_num(-1))
        assert not torch.equal(a.frames, once.batch(5).frames)
        assert not torch.equal(a.frames, SPURRecipe(ROLLOUTS, seed=4).batch(4).frames)

    def test_ratios_and_order(self):
        """600 pairs: each share within four standard errors of what was asked, and the better one first in half."""
        batches = [SPURRecipe(ROLLOUTS, batch_size=200).batch(number) for number in range(3)]
        strategy = torch.cat([batch.strategy for batch in batches])
        for index, ratio in enumerate(RATIOS):
            share = (strategy == index).float().mean().item()
            assert abs(share - ratio) <= 4 * (ratio * (1 - ratio) / 600) ** 0.5
        assert abs(torch.cat([batch.label for batch in batches]).mean().item() - 0.5) <= 4 * (0.25 / 600) ** 0.5

    def test_the_label_names_the_better_video(self):
        """Blue says the tier: the expert's is the preferred one, and the only one with targets."""
        batch = SPURRecipe(ROLLOUTS, batch_size=40, ratios=ONLY["expertise"]).batch(0)
        expert = batch.frames[..., 0, 0, 2].float().mean(2) == 50 * ALL_TIERS.index("expert")  # [B, 2]
        assert torch.equal(expert[:, 0], batch.label == 1)
        assert torch.equal(expert[:, 1], batch.label == 0)
        assert torch.equal(batch.progress.isfinite(), batch.mask & expert[..., None])
        assert 0 < batch.label.sum() < 40

    def test_targets_belong_to_the_frames_shown(self):
        """Green says the frame; a thinned-out clip keeps its first and last frame, and short ones pad the front."""
        batch = SPURRecipe(ROLLOUTS, batch_size=60, frames=6, ratios=ONLY["rewind"]).batch(0)
        shown = batch.frames[..., 0, 0, 1].long() // 8
        padded = 0
        for frames, mask, progress in zip(
            shown.flatten(0, 1), batch.mask.flatten(0, 1), batch.progress.flatten(0, 1), strict=True
        ):
            first, real = frames[0].item(), frames[mask]
            expected = ((real - first + 1) / (SUCCESS_AT + 1 - first)).clamp(max=1)
            torch.testing.assert_close(progress[mask], expected)
            assert progress[~mask].isnan().all()
            assert mask.tolist() == sorted(mask.tolist())
            assert (frames[~mask] == first).all()
            padded += int((~mask).any())
        assert 0 < padded < 120

    def test_sentences_are_those_for_training(self):
        recipe = SPURRecipe(ROLLOUTS, batch_size=30)
        allowed = {sentence for task in TASKS for sentence in training_phrasings(task)}
        assert set(recipe.batch(0).instructions) <= allowed

    def test_without_failures(self):
        recipe = SPURRecipe(ROLLOUTS, batch_size=40, without=("failures",))
        assert {recipe.trajectories[k].first_success is None for k in range(len(recipe.trajectories))} == {False}
        assert recipe.ratios.tolist() == pytest.approx([0, 3 / 7, 4 / 7, 0])
        assert set(recipe.batch(0).strategy.tolist()) == {STRATEGIES.index("task"), STRATEGIES.index("rewind")}

    def test_what_cannot_be_drawn(self):
        experts = [rollout for rollout in ROLLOUTS if rollout.tier == "expert"]
        with pytest.raises(ValueError) as caught:
            SPURRecipe(experts)
        assert str(caught.value) == (
            "ratios: no rollouts for the strategy 'expertise'; give it the ratio 0 or other data"
        )
        SPURRecipe(experts, ratios=(0, 1, 1, 1)).batch(0)
        with pytest.raises(ValueError, match=r"^ratios: no rollouts for the strategy 'task'; "):
            SPURRecipe([rollout for rollout in ROLLOUTS if rollout.task == "push-v3"])
        with pytest.raises(ValueError, match=r"^ratios: expected 4 numbers >= 0, not all 0, got \(1, -1, 0, 0\)$"):
            SPURRecipe(ROLLOUTS, ratios=(1, -1, 0, 0))
        with pytest.raises(ValueError, match=r"^batch_size and frames: expected at least 1, got 0 and 16$"):
            SPURRecipe(ROLLOUTS, batch_size=0)
        with pytest.raises(ValueError, match=r"^expected frames of one size, got \[\(8, 8, 3\), \(16, 16, 3\)\]$"):
            SPURRecipe([*ROLLOUTS, painted("push-v3", "random", size=8)])


class TestLoss:
    def test_is_the_equations(self):
        rng = np.random.default_rng(0)
        logit, label = rng.normal(size=5), rng.integers(0, 2, 5).astype(float)
        progress, target = rng.uniform(size=(5, 2, 4)), rng.uniform(size=(5, 2, 4))
        target[0], target[1, 1, :2] = np.nan, np.nan
        p = 1 / (1 + np.exp(-logit))
        preference = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()
        known = ~np.isnan(target)
        error = ((progress[known] - target[known]) ** 2).mean()
        loss = spur_loss(*map(torch.from_numpy, (logit, label, progress, target)))
        assert loss.preference.item() == pytest.approx(preference)
        assert loss.progress.item() == pytest.approx(error)
        assert loss.total.item() == pytest.approx(preference + error)

    def test_without_targets_progress_costs_nothing(self):
        progress = torch.rand(2, 2, 3, requires_grad=True)
        loss = spur_loss(torch.zeros(2), torch.ones(2), progress, torch.full((2, 2, 3), torch.nan))
        loss.total.backward()
        assert loss.progress.item() == 0
        assert (progress.grad == 0).all()

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"^label: expected the shape \(2,\), got \(2, 1\)$"):
            spur_loss(torch.zeros(2), torch.ones(2, 1), torch.zeros(2, 2), torch.zeros(2, 2))
        with pytest.raises(ValueError, match=r"^target: expected the shape \(2, 2\), got \(2,\)$"):
            spur_loss(torch.zeros(2), torch.ones(2), torch.zeros(2, 2), torch.zeros(2))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2_5(tmp_path_factory.mktemp("base"))


def make(base, **options):
    torch.manual_seed(0)
    return SPURModel(base, window=4, frame_size=28, dropout=0.0, **options)


@torch.inference_mode()
def both_orders(model, batch):
    """P(first > second) and P(second > first) of the pairs of a batch."""
    model.eval()
    tokens = model.encode_frames(batch.frames.flatten(0, 2)).unflatten(0, batch.mask.shape)
    text, (mask_a, mask_b) = model.encode_text(batch.instructions), batch.mask.unbind(1)
    forward = model.pair_logits(tokens[:, 0], tokens[:, 1], text, mask_a, mask_b)[1].sigmoid()
    return forward, model.pair_logits(tokens[:, 1], tokens[:, 0], text, mask_b, mask_a)[1].sigmoid()


class TestTraining:
    def test_the_papers_settings(self):
        """Table 5."""
        options = SPUROptions(data=())
        assert options.config() == TrainConfig(steps=5000, learning_rate=2e-5, weight_decay=0.0, warmup=0.1)
        assert (options.batch_size, options.lora_rank) == (16, None)
        assert SPUROptions(data=(), lora_rank=16).config().learning_rate == 2e-4
        assert SPUROptions(data=(), lora_rank=16, learning_rate=1e-3).config().learning_rate == 1e-3
        recipe = SPURRecipe(ROLLOUTS)
        assert (recipe.batch_size, recipe.frames, recipe.ratios.tolist()) == (16, 16, list(RATIOS))

    def test_it_learns_and_the_two_orders_come_to_agree(self, base, tmp_path):
        """It starts out saying "the first one" in either order, so that P(a > b) + P(b > a) is far above 1.

        Which of two videos is the better one, wherever it stands, is an exclusive or: a net this small sits at log 2
        for a while, and the seed is one that leaves early.
        """
        model = make(base, lora_rank=16)
        with torch.no_grad():
            model.preference_head[4].bias.add_(1.0)
        fresh = SPURRecipe(ROLLOUTS, batch_size=48, frames=4, ratios=ONLY["expertise"], seed=99).batch(0)
        before, turned = both_orders(model, fresh)
        gap = (before + turned - 1).abs().mean().item()
        assert gap > 0.2

        recipe = SPURRecipe(ROLLOUTS, batch_size=12, frames=4, ratios=ONLY["expertise"])
        config = TrainConfig(steps=80, learning_rate=1e-2, weight_decay=0.0, save_every=1000)
        history = train(model, recipe, tmp_path, config, progress_bar=False)
        for part in ("loss", "preference", "progress"):
            start, end = (np.mean([row[part] for row in rows]) for rows in (history[:10], history[-10:]))
            assert end < 0.6 * start, part
        after, turned = both_orders(model, fresh)
        assert (after + turned - 1).abs().mean().item() < gap / 2
        assert ((after > 0.5) == (fresh.label > 0.5)).float().mean().item() > 0.8

        loaded = load_reward_model(tmp_path)
        assert torch.equal(both_orders(loaded, fresh)[0], after)

    @pytest.mark.parametrize("part", ["preference", "progress"])
    def test_without_a_loss_its_head_learns_nothing(self, base, part):
        options = SPUROptions(data=(), backbone=str(base), lora_rank=2, without=(part,))
        torch.manual_seed(0)
        model, recipe = options.build(ROLLOUTS)
        losses = recipe.loss(model.eval(), recipe.batch(0), torch.Generator())
        other = "progress" if part == "preference" else "preference"
        assert losses["loss"] == losses[other] != losses[part] > 0
        losses["loss"].backward()
        gradients = [weight.grad for weight in getattr(model, f"{part}_head").parameters()]
        assert all(gradient is None or not gradient.any() for gradient in gradients)
        assert any(weight.grad.any() for weight in getattr(model, f"{other}_head").parameters())

    def test_without_preferences_the_last_frames_are_compared(self, base, tmp_path):
        model = SPUROptions(data=(), backbone=str(base), lora_rank=2, without=("preference",)).build(ROLLOUTS)[0].eval()
        save_checkpoint(model, tmp_path)
        a, b = model.encode_frames(torch.randint(0, 256, (2, 4, 28, 28, 3), dtype=torch.uint8).flatten(0, 1)).chunk(2)
        text, whole = model.encode_text(["push it"]), torch.ones(1, 4, dtype=torch.bool)
        with torch.no_grad():
            ends = [model.progress_logits(video[None], text, whole)[0, -1] for video in (a, b)]
            said = [each.prefer(a[None], b[None], text).item() for each in (model, load_reward_model(tmp_path))]
        assert said[0] == said[1] == pytest.approx(torch.sigmoid(ends[0] - ends[1]).item())
        assert 0.01 < abs(said[0] - 0.5) < 0.5

    def test_what_cannot_be_left_out(self):
        with pytest.raises(ValueError, match=r"^--without: expected one loss at most, got both"):
            SPUROptions(data=(), without=("progress", "preference"))
        with pytest.raises(ValueError, match=r"^--lora-rank: expected at least 1, got 0$"):
            SPUROptions(data=(), lora_rank=0)

    @pytest.mark.parametrize("lora_rank", [None, 2])
    def test_checkpointing_gives_the_same_gradients_for_fewer_kept_activations(self, base, lora_rank):
        def gradients(checkpointing):
            model, kept = make(base, lora_rank=lora_rank).train(), 0
            if checkpointing:
                model.gradient_checkpointing_enable()

            def keep(tensor):
                nonlocal kept
                kept += tensor.numel()
                return tensor

            recipe = SPURRecipe(ROLLOUTS, batch_size=4, frames=4)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = recipe.loss(model, recipe.batch(0), torch.Generator())["loss"]
            loss.backward()
            return kept, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

        (whole, plain), (part, checkpointed) = gradients(False), gradients(True)
        assert part < whole / 2
        assert plain.keys() == checkpointed.keys()
        assert len(plain) > 8
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, msg=name)

    def test_resumes(self, base, tmp_path):
        """Three steps at once, and two steps, a stop and one more, give the same weights."""
        config = TrainConfig(steps=3, learning_rate=1e-3, save_every=2)
        straight = make(base, lora_rank=2)
        rows = train(straight, SPURRecipe(ROLLOUTS, batch_size=4, frames=4), tmp_path / "a", config, progress_bar=False)

        class Stopped(SPURRecipe):
            def batch(self, number):
                if number == 2:
                    raise KeyboardInterrupt
                return super().batch(number)

        stopped = Stopped(ROLLOUTS, batch_size=4, frames=4)
        with pytest.raises(KeyboardInterrupt):
            train(make(base, lora_rank=2), stopped, tmp_path / "b", config, progress_bar=False)
        resumed = make(base, lora_rank=2)
        recipe = SPURRecipe(ROLLOUTS, batch_size=4, frames=4)
        again = train(resumed, recipe, tmp_path / "b", config, progress_bar=False)
        assert [row["loss"] for row in again] == [row["loss"] for row in rows]
        for name, weight in straight.checkpoint_state().items():
            assert torch.equal(resumed.checkpoint_state()[name], weight), name

    def test_other_data_are_refused(self, base, tmp_path):
        config = TrainConfig(steps=1, save_every=1)
        train(make(base), SPURRecipe(ROLLOUTS, batch_size=2, frames=4), tmp_path, config, progress_bar=False)
        other = SPURRecipe(ROLLOUTS, batch_size=2, frames=4, seed=1)
        with pytest.raises(ValueError, match=r"'recipe_seed': \(0, 1\)"):
            train(make(base), other, tmp_path, config, progress_bar=False)
