"""Rewards as a histogram, and the writers for Weights & Biases and Trackio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import stable_baselines3 as sb3
import torch
from late import late_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, KVWriter, Logger

from vlp_gym import VLPReplayBuffer, VLPRewardCallback, VLPRewardWrapper
from vlp_gym.errors import MissingExtraError
from vlp_gym.integrations.sb3 import RewardVideo, TrackerWriter, callback
from vlp_gym.integrations.sb3.logs import VideoFile
from vlp_gym.testing import PaintedEnv, PaintedModel
from vlp_gym.video import overlay_video, read_video


class Kept(KVWriter):
    """Keeps the tensors and videos that are logged."""

    def __init__(self) -> None:
        self.tensors: list[np.ndarray] = []
        self.numbers: list[float] = []
        self.videos: list[tuple[str, Path]] = []

    def write(self, key_values, key_excluded, step=0):
        for key, value in key_values.items():
            if isinstance(value, torch.Tensor):
                assert key == "vlp/rewards"
                self.tensors.append(value.numpy())
                self.numbers.append(key_values["vlp/reward"])
            elif isinstance(value, VideoFile):
                self.videos.append((key, value.path))

    def close(self):
        pass


def learned(kept: KVWriter, folder: Path, steps: int = 90, **options):
    env = late_env()
    model = sb3.SAC(
        "MlpPolicy", env, replay_buffer_class=VLPReplayBuffer, learning_starts=20, batch_size=8, buffer_size=200,
        policy_kwargs={"net_arch": [8]}, seed=0,
    )  # fmt: skip
    model.set_logger(logger(kept, folder))
    model.learn(steps, callback=VLPRewardCallback(), **options)
    env.close()
    return model


def logger(kept: KVWriter, folder: Path) -> Logger:
    return Logger(str(folder), [kept, CSVOutputFormat(str(folder / "log.csv")), HumanOutputFormat(str(folder / "log"))])


def test_each_reward_is_in_one_histogram(tmp_path: Path) -> None:
    kept = Kept()
    model = learned(kept, tmp_path)
    paid = model.replay_buffer.rewards[: model.replay_buffer.pos, 0]
    together = np.concatenate(kept.tensors)
    assert len(kept.tensors) >= 2
    assert 40 <= len(together) <= len(paid)
    # Each is painted with its own step, so none is counted twice.
    assert len(np.unique(together)) == len(together)
    assert set(together.tolist()) <= set(paid.tolist())
    for tensor, mean in zip(kept.tensors, kept.numbers, strict=True):
        assert tensor.mean() == pytest.approx(mean, abs=1e-5)  # the rewards behind vlp/reward
    model.logger.close()
    assert "vlp/rewards" not in (tmp_path / "log.csv").read_text() + (tmp_path / "log").read_text()


def test_a_histogram_has_the_newest_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "MOST_PAID", 7)
    kept = Kept()
    model = learned(kept, tmp_path, log_interval=100)  # not dumped before the end
    assert kept.tensors == []
    model.logger.dump(90)
    model.logger.close()
    paid = model.replay_buffer.rewards[: model.replay_buffer.pos, 0]
    assert kept.tensors[0].tolist() == paid[-7:].tolist()


def test_a_video_at_each_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("matplotlib")
    env = VLPRewardWrapper(PaintedEnv([6]), "press", PaintedModel())
    model = sb3.PPO("MlpPolicy", PaintedEnv([6]), n_steps=16, batch_size=16, policy_kwargs={"net_arch": [8]}, seed=0)
    kept = Kept()
    model.set_logger(logger(kept, tmp_path))
    film = RewardVideo(env, tmp_path / "videos", title="press", fps=10)
    judged = sb3.common.monitor.Monitor(PaintedEnv([6]))
    model.learn(32, callback=EvalCallback(judged, callback_after_eval=film, eval_freq=16, n_eval_episodes=1, verbose=0))
    model.logger.close()
    assert [path.name for _, path in kept.videos] == ["step-16.mp4", "step-32.mp4"]
    assert {key for key, _ in kept.videos} == {"eval/video"}
    for _, path in kept.videos:
        assert len(read_video(path, max_frames=100)) == 7  # the reset and six steps


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError) as caught:
            TrackerWriter(name)  # type: ignore[arg-type]
        assert str(caught.value) == f'logging to {name} needs it: pip install "vlp_gym[{name}]"'
    with pytest.raises(ValueError) as caught:
        TrackerWriter("mlflow")  # type: ignore[arg-type]
    assert str(caught.value) == 'library: expected "wandb" or "trackio", got \'mlflow\''


WRITES = """
import sys
from pathlib import Path
import numpy as np, torch
from matplotlib.figure import Figure as Canvas
from stable_baselines3.common.logger import Figure, Image
from vlp_gym.integrations.sb3 import TrackerWriter
from vlp_gym.integrations.sb3.logs import VideoFile
writer = TrackerWriter(sys.argv[1], project="test", name="run")
for step in (1, 2):
    values = {"vlp/reward": 0.25 * step, "vlp/rewards": torch.arange(20.0), "text": "left out", "no": 1.0}
    values["eval/video"] = VideoFile(Path(sys.argv[2]))
    values["figure"] = Figure(Canvas(), close=False)
    values["image"] = Image(np.zeros((8, 8, 3), np.uint8), "HWC")
    writer.write(values, {"no": (sys.argv[1],), "vlp/reward": ()}, step=step)
writer.close()
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_without_a_network(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    offline = {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1",
        "WANDB_CACHE_DIR": str(tmp_path / "cache"), "WANDB_DATA_DIR": str(tmp_path / "data"),
    }  # fmt: skip
    overlay_video(np.zeros((3, 16, 16, 3), np.uint8), [0.0, 0.5, 1.0], tmp_path / "film.mp4")
    command = [sys.executable, "-c", WRITES, name, tmp_path / "film.mp4"]
    done = subprocess.run(command, env={**os.environ, **offline}, text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db", ".db-wal"))
    assert b"vlp/reward" in data
    assert b"left out" not in data
    assert len({path.read_bytes() for path in tmp_path.rglob("*.mp4")}) == 1
    assert list(tmp_path.rglob("*.png"))
