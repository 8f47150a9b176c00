"""Minari data sets: pictures from the observations, or from the replayed environment, which may not be any function."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("minari")
pytest.importorskip("h5py")

from minari import create_dataset_from_buffers
from minari.data_collector import EpisodeBuffer

from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # minari's own, of what a description could also say

SENTENCE = "keep the pole up"
EVERY = SourceOptions(instruction=SENTENCE, size=32, fps=25)
ABOUT = {
    "algorithm_name": "x",
    "author": "a",
    "author_email": "b@c.de",
    "code_permalink": "http://x",
    "description": "",
}
STEPS = 12


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return tmp_path


def with_pictures(*, success=True):
    space = gym.spaces.Dict(
        {
            "pixels": gym.spaces.Box(0, 255, (20, 30, 3), np.uint8),
            "arm": gym.spaces.Dict({"joints": gym.spaces.Box(-9, 9, (3,), np.float32)}),
        }
    )
    buffers = []
    for number in range(2):
        rng = np.random.default_rng(number)
        pixels = np.broadcast_to(np.arange(STEPS + 1)[:, None, None, None] * 10 + number, (STEPS + 1, 20, 30, 3))
        infos = {"success": np.arange(STEPS + 1) >= STEPS - 2 + 10 * number} if success else {}
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations={
                    "pixels": pixels.astype(np.uint8),
                    "arm": {"joints": rng.normal(size=(STEPS + 1, 3)).astype(np.float32)},
                },
                actions=rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32),
                rewards=rng.random(STEPS).tolist(),
                terminations=[*[False] * (STEPS - 1), number == 0],
                truncations=[*[False] * (STEPS - 1), number == 1],
                infos=infos,
            )
        )
    actions = gym.spaces.Box(-1, 1, (2,), np.float32)
    create_dataset_from_buffers(
        "own/pixels-v0", buffers, observation_space=space, action_space=actions, jpeg_encoding=False, **ABOUT
    )
    return buffers


def without_pictures():
    env = gym.make("CartPole-v1", max_episode_steps=STEPS, render_mode="rgb_array")
    buffers, frames = [], []
    for number in range(2):
        observation, _ = env.reset(seed=number)
        observations, actions, shown = [observation], [], [env.render()]
        for step in range(8):
            actions.append((step + number) % 2)
            observation, *_ = env.step(actions[-1])
            observations.append(observation)
            shown.append(env.render())
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=[1.0] * 8,
                terminations=[False] * 8,
                truncations=[*[False] * 7, True],
                infos={},
            )
        )
        frames.append(np.array(shown))
    create_dataset_from_buffers("own/plain-v0", buffers, env=env, **ABOUT)
    env.close()
    return buffers, frames


def test_pictures_among_the_observations():
    buffers = with_pictures()
    source = open_source("minari:own/pixels-v0", EVERY)
    assert source.tasks() == [SENTENCE]
    for number, (trajectory, buffer) in enumerate(zip(source.stream(), buffers, strict=True)):
        assert trajectory.sentences == (SENTENCE,)
        assert trajectory.tier == ("expert" if number == 0 else "near_miss")
        assert trajectory.frames.mean((1, 2, 3)) == pytest.approx(np.arange(STEPS + 1) * 10 + number)
        assert np.array_equal(trajectory.observation, buffer.observations["arm"]["joints"])
        assert np.array_equal(trajectory.action, buffer.actions)
        assert trajectory.episode_reward == pytest.approx(buffer.rewards)
        assert trajectory.reward[1:] == pytest.approx(buffer.rewards)
        assert trajectory.success.tolist() == buffer.infos["success"].tolist()
    assert not list(source.stream(["another"]))


def test_without_success_a_termination_is_one():
    with_pictures(success=False)
    first, second = open_source("minari:own/pixels-v0", EVERY).stream()
    assert first.success.tolist() == [*[False] * STEPS, True]
    assert not second.success.any()


def test_the_environment_is_replayed():
    buffers, frames = without_pictures()
    options = SourceOptions(instruction=SENTENCE, size=32, fps=12.5)
    for trajectory, buffer, shown in zip(
        open_source("minari:own/plain-v0", options).stream(), buffers, frames, strict=True
    ):
        assert trajectory.step.tolist() == [0, 2, 4, 6, 8]
        assert np.array_equal(trajectory.observation, buffer.observations)
        assert trajectory.action.ravel().tolist() == buffer.actions.tolist()
        brightness = shown[trajectory.step].mean((1, 2, 3))
        assert trajectory.frames.mean((1, 2, 3)) == pytest.approx(brightness, abs=1)
        assert len({frame.tobytes() for frame in trajectory.frames}) > 1


def change(root, key, **changes):
    """Edit the stored specification of the environment."""
    path = root / "own" / "plain-v0" / "data" / "metadata.json"
    document = json.loads(path.read_text())
    spec = json.loads(document["env_spec"])
    spec.update(changes)
    document["env_spec"] = json.dumps(spec)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "antigravity:CartPole-v1"}, "is not registered here"),
        ({"id": "Unheard-v0"}, "is not registered here"),
        ({"kwargs": {"xml_file": "/etc/passwd"}}, "takes xml_file, more than numbers and switches"),
        ({"kwargs": {"length": 3.0}}, "its environment CartPole-v1 cannot be made"),
    ],
)
def test_a_stored_environment_is_not_trusted(root, changes, message):
    without_pictures()
    change(root, "env_spec", **changes)
    with pytest.raises(DatasetError, match=message):
        list(open_source("minari:own/plain-v0", EVERY).stream())


def test_the_entry_point_is_not_read(root):
    without_pictures()
    change(root, "env_spec", entry_point="os:abort")
    assert len(list(open_source("minari:own/plain-v0", EVERY).stream())) == 2


def test_an_environment_that_has_changed(root):
    import h5py

    without_pictures()
    with h5py.File(root / "own" / "plain-v0" / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1"]["actions"][3] = 1 - file["episode_1"]["actions"][3]
    broken = []
    (only,) = open_source("minari:own/plain-v0", EVERY).stream(on_broken=broken.append)
    assert only.seed == 0
    assert str(broken[0]) == (
        "own/plain-v0, episode 1: step 4: the replayed observation is another one; this environment has changed"
    )


def test_errors(root):
    with_pictures()
    with pytest.raises(DatasetError, match=r'no sentences; say what its task is: .* --instruction "\.\.\."'):
        open_source("minari:own/pixels-v0")
    with pytest.raises(DatasetError, match="--camera: expected one of pixels, got 'wrist'"):
        list(open_source("minari:own/pixels-v0", SourceOptions(instruction="x", camera="wrist")).stream())
    file = root / "own" / "pixels-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="own/pixels-v0"):
        list(open_source("minari:own/pixels-v0", EVERY).stream())


def test_a_data_set_must_say_its_spaces(root):
    """Else its reader would make whatever environment it names."""
    with_pictures()
    path = root / "own/pixels-v0/data/metadata.json"
    about = json.loads(path.read_text())
    del about["action_space"]
    path.write_text(json.dumps(about))
    with pytest.raises(DatasetError, match=r"expected observation_space and action_space in .*json, found none"):
        open_source("minari:own/pixels-v0", EVERY)


def test_a_folder_is_taken_as_well(root):
    with_pictures()
    by_name, by_path = (open_source(f"minari:{name}", EVERY) for name in ("own/pixels-v0", root / "own/pixels-v0"))
    for one, other in zip(by_name.stream(), by_path.stream(), strict=True):
        assert np.array_equal(one.frames, other.frames)


def test_one_that_is_not_here(monkeypatch):
    import minari

    def none(name):
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(minari, "download_dataset", none)
    with pytest.raises(DatasetError, match=r"own/none-v0: no Minari data set that can be read \(no such data set\)"):
        open_source("minari:own/none-v0", EVERY)
