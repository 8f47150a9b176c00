"""LeRobot, the real one: our models as its reward models, our exports as its data, our progress as its weights."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot.rewards")

import torch
from lerobot.configs.rewards import RewardModelConfig
from lerobot.rewards import (
    PreTrainedRewardModel,
    get_reward_model_class,
    make_reward_model,
    make_reward_model_config,
    make_reward_pre_post_processors,
)
from rollouts import painted, with_steps, write_tasks
from tiny import awake_model

from vlp_gym import VLPRewardWrapper
from vlp_gym.commands.main import main
from vlp_gym.data.shards import load_trajectories
from vlp_gym.data.sources.annotate import progress_parquet
from vlp_gym.errors import FrameError, InstructionError
from vlp_gym.integrations.lerobot import VLPConfig, VLPRewardModel
from vlp_gym.testing import PaintedEnv

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

CAMERA, SENTENCE = "observation.images.corner2", "press the button"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights."""
    path = tmp_path_factory.mktemp("tiny")
    awake_model().save_pretrained(path)
    return str(path)


def tasks():
    return [with_steps(painted(task, "expert", 3, 9 + k, 64)) for k, task in enumerate(("push-v3", "reach-v3"))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two rollouts, of 9 and 10 frames, as a LeRobot data set."""
    path = tmp_path_factory.mktemp("data")
    write_tasks(path / "shards", tasks())
    assert main(["data", "convert", str(path / "shards"), "--to", "lerobot", "--out", str(path / "out")]) == 0
    return path / "out"


@pytest.fixture(scope="module")
def dataset(exported):
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("me/ours", root=exported, video_backend="pyav")


# ---------------------------------------------------------------- the reward model


def made(folder, **options):
    return make_reward_model(make_reward_model_config("vlp", model=folder, device="cpu", **options))


def paid(folder, reward):
    """Frames of an episode, and what the wrapper paid for each but the first."""
    env = VLPRewardWrapper(PaintedEnv((7,)), SENTENCE, folder, reward=reward)
    env.reset(seed=0)
    frames, rewards, over = [env.unwrapped.render()], [], False
    while not over:
        _, value, over, _, _ = env.step(0)
        frames.append(env.unwrapped.render())
        rewards.append(value)
    env.close()
    return np.stack(frames), rewards


def channels_first(frames):
    """Frames as LeRobot has them, float ``[T, 3, H, W]``."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("reward", ["progress", "preference"])
def test_it_pays_what_the_wrapper_pays(folder, reward):
    frames, rewards = paid(folder, reward)
    model = made(folder, reward=reward)
    assert isinstance(model, PreTrainedRewardModel)
    assert not model.is_trainable
    for length, expected in zip(range(2, 9), rewards, strict=True):
        clip = channels_first(frames[:length])
        batch = {CAMERA: torch.stack([clip, clip]), "task": [SENTENCE, SENTENCE]}
        assert model.compute_reward(batch).tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_padded_frames_are_no_frames(folder):
    frames, rewards = paid(folder, "progress")
    model = made(folder)
    clips = torch.from_numpy(frames)[[0, 0, 0, 1, 2], :].permute(0, 3, 1, 2)  # uint8
    batch = {CAMERA: torch.stack([clips, clips]), "task": SENTENCE}
    batch[f"{CAMERA}_is_pad"] = torch.tensor([[True, True, False, False, False], [False] * 5])
    found = model.compute_reward(batch)
    assert found[0].item() == pytest.approx(rewards[1], abs=1e-5)
    whole = channels_first(frames[[0, 0, 0, 1, 2]])
    assert found[1].item() == pytest.approx(model.compute_reward({CAMERA: whole[None], "task": SENTENCE}).item())


def test_a_sample_of_a_data_set(folder, dataset):
    """One frame: through LeRobot's processors, which make a batch of it. Its sentence is the rollout's own."""
    from vlp_gym.engine.video import VideoScorer

    config = make_reward_model_config("vlp", model=folder, device="cpu")
    before, after = make_reward_pre_post_processors(config)
    sample = dataset[0]
    reward = after(make_reward_model(config).compute_reward(before(sample)))
    scorer = VideoScorer(folder, [sample["task"]], "cpu")
    picture = (sample[CAMERA] * 255).round().to(torch.uint8).permute(1, 2, 0)
    scorer.open(picture[None].numpy(), "picture")
    assert reward.tolist() == pytest.approx([scorer.final_rewards([sample["task"]])[sample["task"]]], abs=1e-6)


def test_it_is_saved_as_its_configuration(folder, tmp_path):
    model = made(folder, reward="preference", image_key=CAMERA)
    model.save_pretrained(tmp_path / "saved")
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["config.json"]
    batch = {CAMERA: torch.rand(2, 3, 3, 32, 32), "task": SENTENCE}
    again = VLPRewardModel.from_pretrained(tmp_path / "saved")
    assert (again.config.model, again.config.reward) == (folder, "preference")
    config = RewardModelConfig.from_pretrained(tmp_path / "saved")
    config.pretrained_path = str(tmp_path / "saved")  # as --reward_model.path does
    for other in (again, make_reward_model(config)):
        assert torch.equal(other.compute_reward(batch), model.compute_reward(batch))


def test_the_path_of_a_model_is_enough(folder):
    assert make_reward_model(VLPConfig(pretrained_path=folder, device="cpu")).config.model == folder
    assert get_reward_model_class("vlp") is VLPRewardModel


def test_bad_use(folder):
    with pytest.raises(ValueError) as caught:
        make_reward_model(VLPConfig(device="cpu"))
    assert str(caught.value) == "expected the name of a reward model, got none; set model, such as model='vlp-compact'"
    with pytest.raises(ValueError, match=r"^reward must be 'progress' or 'preference', got 'delta'$"):
        VLPConfig(reward="delta")
    with pytest.raises(
        TypeError, match=r"^expected the configuration of a reward model of type vlp, got a SARMConfig$"
    ):
        VLPRewardModel.from_pretrained("x", config=make_reward_model_config("sarm"))
    model, picture = made(folder), torch.rand(2, 3, 8, 8)
    for batch, kind, message in (
        ({}, FrameError, "expected frames of one camera in the batch, got none; see image_key"),
        (
            {CAMERA: picture, "observation.images.side": picture},
            FrameError,
            f"expected frames of one camera in the batch, got ['{CAMERA}', 'observation.images.side']; see image_key",
        ),
        (
            {CAMERA: picture},
            InstructionError,
            "expected sentences under 'task', found none; see task_key, default_task",
        ),
        ({CAMERA: picture, "task": ["go"]}, InstructionError, "expected 2 sentences under 'task', got 1"),
        (
            {CAMERA: picture * 3 - 1, "task": "go"},
            FrameError,
            f"expected uint8, or floats in [0, 1] that are not normalized, under {CAMERA}, got torch.float32",
        ),
        (
            {CAMERA: picture[:, :2], "task": "go"},
            FrameError,
            f"expected frames [B, T, 3, H, W] or [B, 3, H, W] under {CAMERA}, got [2, 2, 8, 8]",
        ),
        (
            {CAMERA: picture[:, None], f"{CAMERA}_is_pad": torch.tensor([[False], [True]]), "task": "go"},
            FrameError,
            f"expected at least one frame in each clip of {CAMERA}, got none in row 1",
        ),
    ):
        with pytest.raises(kind) as caught:
            model.compute_reward(batch)
        assert str(caught.value) == message


@pytest.mark.slow
def test_lerobots_command_knows_it_and_does_not_train_it(folder, exported, tmp_path):
    pytest.importorskip("accelerate")
    command = [
        "--dataset.repo_id=me/ours", f"--dataset.root={exported}", f"--output_dir={tmp_path / 'out'}",
        "--reward_model.discover_packages_path=vlp_gym.integrations.lerobot", "--reward_model.type=vlp",
        f"--reward_model.model={folder}", "--reward_model.device=cpu", "--reward_model.push_to_hub=false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lerobot.scripts.lerobot_train", *command],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Reward model 'vlp' is zero-shot and cannot be trained via lerobot-train" in done.stderr


# ---------------------------------------------------------------- data


def test_our_exports_are_data_sets_of_lerobot(dataset, exported):
    originals = list(load_trajectories(exported.parent / "shards", progress_bar=False))
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (2, 19, 5)
    row = 0
    for number, original in enumerate(originals):
        episode = dataset.meta.episodes[number]
        assert (episode["dataset_from_index"], episode["dataset_to_index"]) == (row, row + len(original.frames))
        for place, frame in enumerate(original.frames):
            sample = dataset[row]
            assert [int(sample[name]) for name in ("index", "episode_index", "frame_index")] == [row, number, place]
            assert sample["task"] == original.canonical
            picture = sample[CAMERA].permute(1, 2, 0).numpy() * 255
            assert np.abs(picture - frame).mean() < 3
            step, last = original.step[place], place == len(original.frames) - 1
            assert np.array_equal(sample["observation.state"].numpy(), original.observation[step])
            assert np.array_equal(sample["action"].numpy(), original.action[step - last])
            paid = 0 if last else original.episode_reward[step : original.step[place + 1]].sum()
            assert float(sample["next.reward"]) == pytest.approx(paid, abs=1e-5)
            assert bool(sample["next.done"]) == last
            assert bool(sample["next.success"]) == bool(original.success[place if last else place + 1])
            row += 1


def test_clips_and_batches_of_a_data_set(folder, dataset, exported):
    """LeRobot's own loading of clips, straight into the model: the same as frame by frame."""
    from lerobot.datasets import LeRobotDataset

    times = {CAMERA: [k / dataset.fps for k in (-3, -2, -1, 0)]}
    clips = LeRobotDataset("me/ours", root=exported, delta_timestamps=times, video_backend="pyav")
    (batch,) = torch.utils.data.DataLoader(torch.utils.data.Subset(clips, [1, 8]), batch_size=2)
    model = made(folder)
    found = model.compute_reward(batch)
    for row, places in enumerate(([0, 1], [5, 6, 7, 8])):
        clip = torch.stack([dataset[place][CAMERA] for place in places])
        expected = model.compute_reward({CAMERA: clip[None], "task": dataset[0]["task"]})
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-5)


# ---------------------------------------------------------------- weights


def test_weights_of_its_reward_aware_training(tmp_path):
    """SARM's equations 8 and 9, of the change of progress over two frames; episode 1 has no scores."""
    from lerobot.rewards.sarm.rabc import RABCWeights

    curves = {0: (np.array([0, 3]), np.array([0.0, 0.6])), 2: (np.array([0, 4]), np.array([0.5, 0.1]))}
    (tmp_path / "progress.parquet").write_bytes(progress_parquet({0: 4, 1: 3, 2: 5}, curves, "vlp-compact"))
    weights = RABCWeights(tmp_path / "progress.parquet", chunk_size=2, kappa=0.01, epsilon=0.0, device="cpu")
    # progress 0, 0.2, 0.4, 0.6 and 0.5, 0.4, 0.3, 0.2, 0.1
    changes = [0.4, 0.4, 0.2, 0.0, -0.2, -0.2, -0.2, -0.1, 0.0]
    mean = sum(changes) / 9
    spread = math.sqrt(sum((change - mean) ** 2 for change in changes) / 9)
    assert (weights.delta_mean, weights.delta_std) == pytest.approx((mean, spread), abs=1e-6)
    soft = (2 * spread - mean) / (4 * spread)  # of no change
    given, stats = weights.compute_batch_weights({"index": torch.tensor([0, 2, 3, 4, 7, 11])})
    raw = np.array([1.0, 1.0, soft, 1.0, 0.0, soft])
    assert given.numpy() == pytest.approx(raw * 6 / raw.sum(), abs=1e-5)
    assert (stats["num_zero_weight"], stats["num_full_weight"]) == (1, 3)


def test_weights_of_what_the_command_writes(folder, exported, tmp_path):
    from lerobot.utils.sample_weighting import SampleWeightingConfig, make_sample_weighter

    command = ["score", "--dataset", f"lerobot:{exported}", "--model", folder, "--out", str(tmp_path / "scores")]
    assert main(command) == 0

    class Policy:
        """What LeRobot reads of a policy."""

        class config:
            chunk_size = 3

    path = str(tmp_path / "scores" / "progress.parquet")
    weigher = make_sample_weighter(SampleWeightingConfig(progress_path=path), Policy(), torch.device("cpu"))
    assert sorted(weigher.progress_lookup) == list(range(19))
    assert weigher.episode_boundaries == {0: {"start": 0, "end": 9}, 1: {"start": 9, "end": 19}}
    given, _ = weigher.compute_batch_weights({"index": torch.arange(19)})
    progress = np.array([weigher.progress_lookup[k] for k in range(19)])
    later = progress[[*np.minimum(np.arange(9) + 3, 8), *np.minimum(np.arange(9, 19) + 3, 18)]]
    rises = (later - progress) > 0.01
    falls = later < progress
    assert np.all(given.numpy()[falls] == 0)
    assert len(set(given.numpy()[rises].tolist())) <= 1
