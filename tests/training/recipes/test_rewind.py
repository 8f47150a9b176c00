"""ReWiND's training: what its clips show, that they are the same whatever was drawn before, and that it learns."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState
from rollouts import SUCCESS_AT, painted, painted_tasks
from tiny import tiny_model

from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.rewind import ReWiNDModel
from vlp_gym.objectives.rewind import rewind_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.loop import train
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.rewind import RewindRecipe, clip_frames
from vlp_gym.training.recipes.stage_clips import StageSampler
from vlp_gym.training.recipes.staged import StagedRecipe

TASKS = ["push-v3", "reach-v3", "window-open-v3"]
DEMONSTRATIONS = painted_tasks(TASKS, each=2, size=32, tiers=("expert",))
OTHERS = [painted("push-v3", "random", 6, size=32), painted("reach-v3", "expert", 7, size=32, fails=True)]
ROLLOUTS = DEMONSTRATIONS + OTHERS
WAY = SUCCESS_AT + 1  # frames of a painted expert up to its success, that one included


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"frame_size": 32, "channels": 16, "hidden": 32, "layers": 1, "heads": 2, "feed_forward": 64, "window": 6}
    return ReWiNDModel("small", **{**sizes, **options})


def recipe(**options):
    return RewindRecipe(ROLLOUTS, **{"window": 6, "clips": 8, "seed": 3, **options})


def shown(frames):
    """Of painted clips ``[..., H, W, 3]``: which rollout, and which frame of it."""
    rollout, index = np.asarray(frames)[..., 0, 0, 0] / 20, np.asarray(frames)[..., 0, 0, 1] / 8
    return rollout.astype(int), index.astype(int)


@pytest.fixture
def accelerate_state():
    """Accelerate keeps the precision of a process's first training; a test with another one starts afresh."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class TestClips:
    @pytest.mark.parametrize("rewound", [False, True])
    def test_progress_is_the_share_of_the_way_from_the_first_frame(self, rewound):
        """Of the frames from the clip's first one to the success: the k-th of n shows k / n, and success 1."""
        rng = np.random.default_rng(0)
        for demonstration in DEMONSTRATIONS * 50:
            index, progress = clip_frames(demonstration, rewound=rewound, rng=rng)
            start = index[0]
            left = [frame for frame in range(len(demonstration.frames)) if start <= frame < WAY]
            expected = [left.index(frame) + 1 if frame in left else len(left) for frame in index]
            np.testing.assert_allclose(progress, np.array(expected) / len(left))
            assert (progress[index >= SUCCESS_AT] == 1).all()

    def test_a_forward_clip_shows_every_frame_from_somewhere_to_somewhere(self):
        rng = np.random.default_rng(0)
        ends = set()
        for _ in range(600):
            index, _ = clip_frames(DEMONSTRATIONS[0], rewound=False, rng=rng)
            assert index.tolist() == list(range(index[0], index[-1] + 1))
            ends.add((index[0], index[-1]))
        first, last = map(set, zip(*ends, strict=True))
        assert first == set(range(WAY - 2))  # there are three frames of the way left, or more
        assert last == set(range(2, 16))
        assert min(b - a for a, b in ends) == 2

    def test_a_rewound_clip_goes_on_and_then_back(self):
        rng = np.random.default_rng(0)
        seen = set()
        for _ in range(2000):
            index, progress = clip_frames(DEMONSTRATIONS[0], rewound=True, rng=rng)
            turn = int(index.argmax())
            steps = np.diff(index)
            assert (steps[:turn] == 1).all()
            assert (steps[turn:] == -1).all()
            assert turn >= 2
            assert index[-1] >= index[0]
            assert progress[-1] <= progress[turn]
            seen.add((index[0], index[turn], len(index) - 1 - turn))
        first, last, back = map(set, zip(*seen, strict=True))
        assert first == set(range(WAY // 2 + 1))
        assert last == set(range(WAY // 2 - 1, 16))
        assert back == set(range(1, 16))
        assert (0, 15, 15) in seen  # all the way back

    def test_a_demonstration_that_succeeds_at_once(self):
        """Three frames, the first of them done: all clips are of the three, and done."""
        short = painted("push-v3", "expert", frames=3)
        short = dataclasses.replace(short, success=np.array([True, True, True]))
        rng = np.random.default_rng(0)
        for rewound in (False, True) * 20:
            index, progress = clip_frames(short, rewound=rewound, rng=rng)
            assert index[:3].tolist() == [0, 1, 2]
            assert (progress == 1).all()


class TestBatch:
    def test_shapes_and_what_is_in_it(self):
        batch = recipe().batch(0)
        assert batch.frames.shape == (8, 6, 32, 32, 3)
        assert batch.frames.dtype == torch.uint8
        assert (batch.mask.shape, batch.mask.dtype) == ((8, 6), torch.bool)
        assert (batch.progress.shape, batch.progress.dtype) == ((8, 6), torch.float32)
        assert len(batch.instructions) == 8

    def test_frames_progress_and_sentences_belong_together(self):
        """Every clip of 60 batches: it is of a demonstration, in the order of time or of a rewind, and its own."""
        numbers = {t.frames[0, 0, 0, 0] // 20: t for t in DEMONSTRATIONS}
        assert len(numbers) == len(DEMONSTRATIONS)
        mine = recipe(window=40)  # longer than any clip: each shows all of its frames
        clips = 0
        for number in range(60):
            batch = mine.batch(number)
            assert batch.to(torch.device("cpu")).instructions == batch.instructions
            for row in range(8):
                mask = batch.mask[row].numpy()
                rollout, index = shown(batch.frames[row])
                demonstration = numbers[rollout[0]]
                assert (rollout == rollout[0]).all()
                real = index[mask]
                assert (mask == (np.arange(40) >= 40 - len(real))).all()
                assert (index[~mask] == real[0]).all()
                np.testing.assert_array_equal(np.abs(np.diff(real)), 1)
                expected = np.minimum((real - real[0] + 1) / (WAY - real[0]), 1)
                told = [task for task in TASKS if batch.instructions[row] in training_phrasings(task)]
                assert batch.matched[row] == (told == [demonstration.task])
                assert len(told) == 1
                np.testing.assert_allclose(batch.progress[row][mask], expected * batch.matched[row].item(), atol=1e-6)
                clips += 1
        assert clips == 480

    def test_long_clips_are_subsampled_as_an_episode_is(self):
        """First and last kept, evenly between: of 15 frames in 4 places, 0, 5, 9 and 14 (14/3 = 4.67, 9.33)."""
        mine = recipe(window=4, p_rewind=0.0, wrong_share=0.0)
        found = 0
        for number in range(100):
            batch = mine.batch(number)
            for frames, mask in zip(batch.frames, batch.mask, strict=True):
                index = shown(frames)[1] - shown(frames)[1][0]
                if index[-1] == 14 and mask.all():
                    assert index.tolist() == [0, 5, 9, 14]
                    found += 1
        assert found > 0

    def test_shares(self):
        """Of 2,000 clips 80 % are rewound and 20 % have a wrong sentence, one as likely as the other in both."""
        mine = recipe(window=40, clips=50)
        batches = [mine.batch(number) for number in range(40)]
        wrong = np.array([not matched for batch in batches for matched in batch.matched])
        rewound = np.array([(np.diff(shown(f)[1]) < 0).any() for batch in batches for f in batch.frames])
        error = 4 * np.sqrt(0.2 * 0.8 / 2000)  # four standard deviations
        assert wrong.mean() == pytest.approx(0.2, abs=error)
        assert rewound.mean() == pytest.approx(0.8, abs=error)
        assert rewound[wrong].mean() == pytest.approx(0.8, abs=3 * error)
        told = [sentence for batch in batches for sentence in batch.instructions]
        for task in TASKS:
            share = np.mean([sentence in training_phrasings(task) for sentence in told])
            assert share == pytest.approx(1 / 3, abs=0.04)

    def test_an_uneven_pace_says_nothing_of_the_progress(self):
        """Frames stand or are passed over, in order and from the first one on; each keeps its progress.

        At an even pace the k-th of the shown frames tells how far it is; at an uneven one much less.
        """

        def clips(p_uneven):
            mine = recipe(window=40, p_rewind=0.0, wrong_share=0.0, p_uneven=p_uneven, clips=50)
            for number in range(10):
                batch = mine.batch(number)
                for frames, mask, progress in zip(batch.frames, batch.mask, batch.progress, strict=True):
                    yield shown(frames)[1][mask], progress[mask].numpy()

        correlations = []
        for p_uneven in (0.0, 1.0):
            counts, targets, stands = [], [], []
            for index, progress in clips(p_uneven):
                assert (np.diff(index) >= 0).all()
                expected = np.minimum((index - index[0] + 1) / (WAY - index[0]), 1)
                np.testing.assert_allclose(progress, expected, atol=1e-6)
                counts.extend(range(len(index)))
                targets.extend(progress)
                stands.append((np.diff(index) == 0).mean())
            correlations.append(np.corrcoef(counts, targets)[0, 1])
            assert (np.mean(stands) > 0.4) == bool(p_uneven)
        assert correlations[0] > 0.75
        assert correlations[1] < 0.5

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_shares_at_their_ends(self, share):
        batch = recipe(window=40, p_rewind=share, wrong_share=share).batch(0)
        assert (batch.matched == (share == 0)).all()
        assert [(np.diff(shown(f)[1]) < 0).any() for f in batch.frames] == [share == 1] * 8
        assert (batch.progress == 0).all() == (share == 1)

    def test_seed_and_number_decide_alone(self):
        a, b = recipe(), recipe()
        b.batch(7)  # whatever was drawn before
        for number in (5, 0):
            one, other = a.batch(number), b.batch(number)
            assert one.instructions == other.instructions
            for name in ("frames", "mask", "progress", "matched"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert not torch.equal(a.batch(0).frames, a.batch(1).frames)
        assert not torch.equal(a.batch(0).frames, recipe(seed=4).batch(0).frames)

    def test_what_is_wrong_is_said(self):
        failing = [t for t in ROLLOUTS if t.task != "push-v3"] + [painted("push-v3", "expert", fails=True)]
        for trajectories, options, message in (
            (painted_tasks(["push-v3"]), {}, "expected trajectories of at least two tasks, got ['push-v3']"),
            (
                failing,
                {},
                "expected an expert of 3 frames or more that succeeds in every task, found none of ['push-v3']",
            ),
            (ROLLOUTS, {"clips": 0}, "clips: expected at least 1, got 0"),
            (ROLLOUTS, {"p_rewind": 1.5}, "p_rewind: expected a probability in [0, 1], got 1.5"),
            (ROLLOUTS, {"p_uneven": 2}, "p_uneven: expected a probability in [0, 1], got 2"),
            (ROLLOUTS, {"wrong_share": -1}, "wrong_share: expected a probability in [0, 1], got -1"),
        ):
            with pytest.raises(ValueError) as caught:
                RewindRecipe(trajectories, **options)
            assert str(caught.value) == message


class TestLoss:
    def test_squared_error(self):
        rng = np.random.default_rng(0)
        progress, target = rng.random((2, 3, 4))
        mask = np.arange(4) >= np.array([[0], [2], [1]])
        matched = np.array([True, True, False])
        parts = rewind_loss(*map(torch.from_numpy, (progress, target, mask, matched)))
        own = sum((progress[b, t] - target[b, t]) ** 2 for b in range(2) for t in range(4) if mask[b, t]) / 9
        foreign = sum(progress[2, t] ** 2 for t in range(1, 4)) / 9
        for part, expected in zip(parts, (own + foreign, own, foreign), strict=True):
            assert part.item() == pytest.approx(expected, rel=1e-6)

    def test_of_a_batch(self):
        """The small backbone sees augmented pixels; the parts add up."""
        model, batch = tiny(dropout=0.0).eval(), recipe().batch(0)
        parts = recipe().loss(model, batch, torch.Generator().manual_seed(1))
        pixels = augment_clips(batch.frames, torch.Generator().manual_seed(1))
        tokens = model.backbone.encode_pixels(pixels).unflatten(0, (8, 6))
        progress = model.score(tokens, model.encode_text(batch.instructions), batch.mask).progress
        expected = ((progress - batch.progress) ** 2)[batch.mask].mean()
        torch.testing.assert_close(parts["loss"], expected)
        torch.testing.assert_close(parts["matched"] + parts["mismatched"], parts["loss"])
        assert parts.keys() == {"loss", "matched", "mismatched"}

    def test_frames_of_another_size_are_resized(self):
        model = tiny(frame_size=16)
        assert recipe().loss(model, recipe().batch(0), torch.Generator())["loss"].isfinite()

    @pytest.mark.parametrize("size", [32, 16])
    def test_frozen_encoders_see_each_frame_once_and_as_it_is(self, size, monkeypatch):
        """A prepared recipe gives what they make of the frames of the same clips, and the loss is the same."""
        model, mine = tiny(freeze_encoders=True, dropout=0.0, frame_size=size), recipe()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        seen = []
        encode = model.backbone.encode_frozen
        monkeypatch.setattr(
            model.backbone, "encode_frozen", lambda frames: (seen.append(len(frames)), encode(frames))[1]
        )
        mine.prepare(model, progress_bar=False)
        generator = torch.Generator()
        drawn = generator.get_state()
        for number in (0, 1):
            batch, plain = mine.batch(number), recipe().batch(number)
            assert (batch.frames.dtype, plain.frames.dtype) == (torch.float32, torch.uint8)
            assert (batch.instructions, batch.mask.tolist()) == (plain.instructions, plain.mask.tolist())
            parts = [mine.loss(model, each, generator) for each in (batch, plain)]
            torch.testing.assert_close(*parts)
        assert sum(seen) == sum(len(demonstration.frames) for demonstration in DEMONSTRATIONS)
        assert torch.equal(generator.get_state(), drawn)  # nothing was augmented
        for name, value in model.state_dict().items():  # not even by batch normalisation
            assert torch.equal(value, before[name]), name

        mine.prepare(tiny(), progress_bar=False)
        assert mine.batch(0).frames.dtype == torch.uint8  # encoders that are trained see the frames anew each time

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_frozen_encoders_stay_what_they_are(self, tmp_path, precision, accelerate_state):
        model = tiny(freeze_encoders=True)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train(
            model, recipe(), tmp_path, TrainConfig(steps=3, learning_rate=1e-2, precision=precision), progress_bar=False
        )
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert not any(name.startswith("backbone.encoders.") for name in changed)
        assert {"backbone.cell.0.weight", "video_proj.weight", "progress_head.4.weight"} <= changed
        loaded = load_reward_model(tmp_path)
        assert loaded.backbone.frozen
        assert torch.equal(loaded.backbone.cell[0].weight, model.backbone.cell[0].weight)

    def test_another_model_is_refused(self):
        with pytest.raises(TypeError, match=r"^expected a ReWiNDModel, got StagedRewardModel$"):
            recipe().loss(tiny_model(), recipe().batch(0), torch.Generator())


class TestTraining:
    CONFIG = TrainConfig(steps=30, learning_rate=3e-3, save_every=15, seed=5)

    def run(self, folder, model=None, **changes):
        model = tiny() if model is None else model
        config = TrainConfig(**{**vars(self.CONFIG), **changes})
        return model, train(model, recipe(), folder, config, progress_bar=False)

    def test_it_learns_and_goes_on_where_it_stopped(self, tmp_path, monkeypatch):
        straight, history = self.run(tmp_path / "straight")
        losses = [row["loss"] for row in history]
        assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
        for row in history:
            assert row["matched"] + row["mismatched"] == pytest.approx(row["loss"], rel=1e-5)

        loss, calls = RewindRecipe.loss, []

        def interrupted(self, model, batch, generator):
            calls.append(1)
            if len(calls) == 19:  # the state of step 15 is on disk
                raise KeyboardInterrupt
            return loss(self, model, batch, generator)

        monkeypatch.setattr(RewindRecipe, "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "stopped")
        monkeypatch.undo()
        torch.rand(7)  # whatever happens in between
        resumed, again = self.run(tmp_path / "stopped", tiny(seed=99))
        assert [row["loss"] for row in again] == losses
        for name, weight in straight.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], weight), name

        loaded = load_reward_model(tmp_path / "stopped")
        assert torch.equal(loaded.video_proj.weight, straight.video_proj.weight)

    def test_another_model_does_not_go_on(self, tmp_path):
        """It says what is different, not how many tensors are."""
        self.run(tmp_path, steps=1)
        with pytest.raises(
            ValueError, match=re.escape("(then, now): {'model.freeze_encoders': (False, True)}; choose")
        ):
            self.run(tmp_path, tiny(freeze_encoders=True), steps=1)

    def test_another_system_does_not_go_on(self, tmp_path):
        rollouts = painted_tasks(TASKS, each=1, size=32)
        sampler = StageSampler(rollouts, tasks_per_batch=2, clips_per_task=3, frames_per_clip=4, seed=5)
        train(
            tiny_model(),
            StagedRecipe(sampler, 0),
            tmp_path,
            TrainConfig(**{**vars(self.CONFIG), "steps": 1}),
            progress_bar=False,
        )
        with pytest.raises(ValueError, match=re.escape("'recipe': (None, 'rewind')")):
            self.run(tmp_path)

    def test_another_recipe_is_refused(self, tmp_path):
        self.run(tmp_path, steps=1)
        with pytest.raises(ValueError) as caught:
            train(tiny(), recipe(p_rewind=0.5), tmp_path, TrainConfig(**{**vars(self.CONFIG), "steps": 1}))
        assert str(caught.value) == (
            f"{tmp_path} holds a run with other settings (then, now): {{'p_rewind': (0.8, 0.5)}}; choose another --out"
        )
