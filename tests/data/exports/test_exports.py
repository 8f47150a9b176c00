"""Data sets in other formats: written with real encoders, read by the libraries' own rules, and back as they were."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("datasets")
pytest.importorskip("minari")
pytest.importorskip("h5py")

import pyarrow.parquet as pq
from rollouts import painted, with_steps, write_tasks

from vlp_gym.data.exports import KINDS, export, lerobot
from vlp_gym.data.fields import FIELDS
from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.data.trajectory import RETREAT
from vlp_gym.errors import DatasetError

RATE, SIZE = 5.0, 48
READ = SourceOptions(size=SIZE, fps=RATE)
FIELDS_AT = {"lerobot": f"meta/{FIELDS}", "minari": f"data/{FIELDS}"}
kinds = pytest.mark.parametrize("kind", KINDS)


def every_step(trajectory):
    """The same rollout with a frame of each environment step."""
    steps = len(trajectory.frames) - 1
    return replace(
        trajectory, stride=1, step=np.arange(steps + 1), episode_reward=trajectory.reward[1:],
        observation=trajectory.observation[: steps + 1], action=trajectory.action[:steps],
    )  # fmt: skip


def rollouts(*, size=SIZE):
    """Five rollouts of two tasks, of which Meta-World has sentences and opposites, each of another length."""
    made = [
        ("push-v3", "expert"),
        ("push-v3", "near_miss"),
        ("fold", "medium"),
        ("push-v3", RETREAT),
        ("fold", "expert"),
    ]
    found = [with_steps(painted(task, tier, k, 12 + k, size)) for k, (task, tier) in enumerate(made)]
    return [t if t.sentences else replace(t, sentences=("fold the towel", "lay it together")) for t in found]


def assert_same(read, written, *, frames):
    """Equal in everything; frames are off by so much at most."""
    assert [vars(t).keys() for t in read] == [vars(t).keys() for t in written]
    for one, other in zip(read, written, strict=True):
        for name, value in vars(other).items():
            found = getattr(one, name)
            if name == "frames":
                assert found.shape == value.shape
                assert np.abs(found.astype(int) - value).max() <= frames
            elif isinstance(value, np.ndarray):
                assert (found.dtype, name) == (value.dtype, name)
                assert np.array_equal(found, value, equal_nan=value.dtype.kind == "f"), name
            else:
                assert (name, found) == (name, value)


@kinds
def test_shards_come_back_as_they_were(kind, tmp_path):
    write_tasks(tmp_path / "shards", rollouts())
    shards = list(open_source(tmp_path / "shards").stream())
    survey = export(iter(shards), kind, tmp_path / "out", RATE)
    assert (survey.episodes, survey.frames) == (5, sum(len(t.frames) for t in shards))
    source = open_source(f"{kind}:{tmp_path / 'out'}", READ)
    assert source.tasks() == ["fold", "push-v3"]
    assert_same(list(source.stream()), shards, frames={"lerobot": 6, "minari": 0}[kind])
    only = list(source.stream(["fold"]))
    assert [t.name for t in only] == [t.name for t in shards if t.task == "fold"]


@kinds
def test_without_our_file_the_format_itself_says_nearly_all(kind, tmp_path):
    written = [every_step(t) for t in rollouts()]
    export(written, kind, tmp_path / "out", RATE)
    (tmp_path / "out" / FIELDS_AT[kind]).unlink()
    options = READ if kind == "lerobot" else replace(READ, instruction="go")
    source = open_source(f"{kind}:{tmp_path / 'out'}", options)
    for number, (read, t) in enumerate(zip(source.stream(), written, strict=True)):
        assert np.array_equal(read.observation, t.observation)
        assert np.array_equal(read.action, t.action)
        assert np.array_equal(read.episode_reward, t.episode_reward)
        assert np.array_equal(read.reward, t.reward)
        assert np.array_equal(read.success, t.success)
        assert read.seed == number
        assert read.sentences == (t.canonical if kind == "lerobot" else "go",)
        assert read.tier == ("expert" if t.success.any() else "near_miss")


@kinds
def test_rewards_between_two_frames_are_added_up(kind, tmp_path):
    (written,) = [replace(rollouts()[0], step=np.arange(0, 12) * 5)]
    export([written], kind, tmp_path / "out", RATE)
    (tmp_path / "out" / FIELDS_AT[kind]).unlink()
    (read,) = open_source(
        f"{kind}:{tmp_path / 'out'}", replace(READ, instruction=None if kind == "lerobot" else "go")
    ).stream()
    assert np.allclose(read.episode_reward, written.episode_reward.reshape(-1, 5).sum(1), rtol=1e-6)
    assert np.array_equal(read.observation, written.observation[::5])
    assert np.array_equal(read.action, written.action[::5])


@kinds
def test_videos_alone(kind, tmp_path):
    """No observations, actions and rewards: the format has no columns of zeros that look like some."""
    bare = [
        replace(t, observation=None, action=None, reward=0 * t.reward, episode_reward=0 * t.episode_reward)
        for t in rollouts()
    ]
    export(bare, kind, tmp_path / "out", RATE)
    assert_same(list(open_source(f"{kind}:{tmp_path / 'out'}", READ).stream()), bare, frames=6)
    if kind == "lerobot":
        names = json.loads((tmp_path / "out/meta/info.json").read_text())["features"].keys()
        assert not names & {"observation.state", "action", "next.reward"}
        assert not set(pq.read_schema(tmp_path / "out/data/chunk-000/file-000.parquet").names) - names
    else:
        import gymnasium as gym
        import minari

        assert minari.MinariDataset(tmp_path / "out/data").action_space == gym.spaces.Discrete(1)


@kinds
def test_rollouts_of_several_widths(kind, tmp_path):
    first, second, *_ = rollouts()
    mixed = [first, replace(second, action=second.action[:, :2]), replace(first, observation=None, seed=9)]
    survey = export(mixed, kind, tmp_path / "out", RATE)
    assert survey.beside() == (
        "in vlp_gym.parquet, which only vlp_gym reads: tiers; further sentences; positions; seeds; observations, which "
        "differ in width or are missing in some; actions, which differ in width or are missing in some"
    )
    assert_same(list(open_source(f"{kind}:{tmp_path / 'out'}", READ).stream()), mixed, frames=6)


@kinds
def test_fewer_frames_a_second(kind, tmp_path):
    written = rollouts()
    export(written, kind, tmp_path / "out", 10.0)
    for read, t in zip(open_source(f"{kind}:{tmp_path / 'out'}", READ).stream(), written, strict=True):
        kept = [*range(0, len(t.frames) - 1, 2), len(t.frames) - 1]
        assert read.step.tolist() == t.step[kept].tolist()
        assert read.stride == 10
        for name in ("reward", "success", "positions"):
            assert np.array_equal(getattr(read, name), getattr(t, name)[kept])
        assert np.array_equal(read.action, t.action)


@kinds
def test_odd_sizes(kind, tmp_path):
    written = rollouts(size=33)[:2]
    export(written, kind, tmp_path / "out", RATE)
    read = list(open_source(f"{kind}:{tmp_path / 'out'}", replace(READ, size=33)).stream())
    assert_same(read, written, frames=6)


@kinds
def test_one_trajectory_in_memory_at_a_time(kind, tmp_path):
    made = []

    def stream():
        for t in rollouts():
            gc.collect()
            assert sum(frames() is not None for frames in made) <= 1  # the writer's own variable
            fresh = replace(t, frames=t.frames.copy())
            made.append(weakref.ref(fresh.frames))
            yield fresh
            del fresh

    assert export(stream(), kind, tmp_path / "out", RATE).episodes == 5


def test_too_slow_for_a_video(tmp_path):
    with pytest.raises(DatasetError, match=r"at least 0\.01 frames per second for a video, got 0\.001"):
        export(rollouts(), "lerobot", tmp_path / "out", 0.001)
    assert list(tmp_path.iterdir()) == []


def test_lerobot_begins_new_files(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "DATA_MB", 0)
    monkeypatch.setattr(lerobot, "VIDEO_MB", 0)
    monkeypatch.setattr(lerobot, "CHUNK", 2)
    written = rollouts()
    export(written, "lerobot", tmp_path / "out", RATE)
    names = [
        "chunk-000/file-000",
        "chunk-000/file-001",
        "chunk-001/file-000",
        "chunk-001/file-001",
        "chunk-002/file-000",
    ]
    for folder, ending in (("data", "parquet"), ("videos/observation.images.corner2", "mp4")):
        found = sorted((tmp_path / "out" / folder).rglob(f"*.{ending}"))
        assert found == [tmp_path / "out" / folder / f"{name}.{ending}" for name in names]
    assert_same(list(open_source(f"lerobot:{tmp_path / 'out'}", READ).stream()), written, frames=6)


def test_lerobot_is_laid_out_by_its_rules(tmp_path):
    """What `lerobot` 0.4 reads: features that name every column, frames on the grid of the rate, tasks as an index."""
    import pandas
    from datasets import Dataset, Features, Sequence, Value

    written = rollouts()
    export(written, "lerobot", tmp_path / "out", 12.5)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_tasks"]) == ("v3.0", 12.5, 5, 2)
    plain = {name: f for name, f in info["features"].items() if f["dtype"] != "video"}
    columns = {
        name: Value(f["dtype"]) if f["shape"] == [1] else Sequence(Value(f["dtype"]), length=f["shape"][0])
        for name, f in plain.items()
    }
    file = tmp_path / "out" / info["data_path"].format(chunk_index=0, file_index=0)
    rows = Dataset.from_parquet(str(file), features=Features(columns), cache_dir=str(tmp_path / "cache"))
    assert len(rows) == info["total_frames"] == sum(len(t.frames) for t in written)
    assert rows["index"][:] == list(range(len(rows)))
    assert np.allclose(rows["timestamp"][:], np.array(rows["frame_index"][:]) / 12.5, atol=1e-4)
    tasks = pandas.read_parquet(tmp_path / "out/meta/tasks.parquet")
    assert [tasks.iloc[number].name for number in (0, 1)] == [written[0].canonical, "fold the towel"]
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row, t in zip(episodes, written, strict=True):
        assert row["dataset_to_index"] - row["dataset_from_index"] == row["length"] == len(t.frames)
        assert set(rows["episode_index"][row["dataset_from_index"] : row["dataset_to_index"]]) == {row["episode_index"]}
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    actions = np.concatenate([t.action[np.minimum(t.step, len(t.action) - 1)] for t in written])
    assert np.allclose(stats["action"]["mean"], actions.mean(0))
    assert np.allclose(stats["action"]["std"], actions.std(0))
    assert np.array_equal(stats["action"]["max"], actions.max(0))
    pixels = np.concatenate([t.frames.reshape(-1, 3) for t in written]) / 255
    assert np.allclose(np.squeeze(stats["observation.images.corner2"]["mean"]), pixels.mean(0))


def test_lerobot_stores_one_number_as_itself(tmp_path):
    narrow = [
        replace(every_step(t), observation=t.observation[: len(t.frames), :1], action=t.action[: len(t.frames) - 1, :1])
        for t in rollouts()
    ]
    export(narrow, "lerobot", tmp_path / "out", RATE)
    assert str(pq.read_schema(tmp_path / "out/data/chunk-000/file-000.parquet").field("action").type) == "float"
    (tmp_path / "out" / FIELDS_AT["lerobot"]).unlink()
    for read, t in zip(open_source(f"lerobot:{tmp_path / 'out'}", READ).stream(), narrow, strict=True):
        assert np.array_equal(read.action, t.action)
        assert np.array_equal(read.observation, t.observation)


def test_minari_reads_what_its_spaces_say(tmp_path, monkeypatch):
    import minari

    written = rollouts()
    export(written, "minari", tmp_path / "towel-v3", RATE)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = minari.load_dataset("towel-v3")
    assert (data.spec.dataset_id, data.total_episodes) == ("towel-v3", 5)
    assert data.total_steps == sum(len(t.frames) - 1 for t in written)
    for episode, about, t in zip(data, data.storage.get_episode_metadata(range(5)), written, strict=True):
        assert episode.actions[0] in data.action_space
        assert {name: rows[-1] for name, rows in episode.observations.items()} in data.observation_space
        assert np.array_equal(episode.observations["pixels"], t.frames)
        assert not episode.terminations.any()
        assert episode.truncations.tolist() == [*[False] * (len(t.frames) - 2), True]
        assert (about["instruction"], about["tier"], about["seed"]) == (t.canonical, t.tier, t.seed)
    assert open_source("minari:towel-v3", READ).tasks() == ["fold", "push-v3"]


@kinds
def test_the_folder_must_be_new(kind, tmp_path):
    (tmp_path / "out").mkdir()
    assert export(rollouts()[:1], kind, tmp_path / "out", RATE).episodes == 1
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError) as caught:
        export(rollouts(), kind, tmp_path / "out", RATE)
    assert str(caught.value) == f"{tmp_path}/out: expected a new or an empty folder, found files; choose another --out"
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="found a file; choose another --out"):
        export(rollouts(), kind, tmp_path / "file", RATE)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])


@kinds
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, sentences=()), "expected sentences that say what the task is, found none"),
        (lambda t: replace(t, frames=t.frames[:, :40]), "expected frames of 48 x 48 pixels as before, got 48 x 40"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(kind, change, message, tmp_path):
    first, second, *_ = rollouts()
    with pytest.raises(DatasetError, match=message):
        export([first, change(second)], kind, tmp_path / "out", RATE)
    with pytest.raises(DatasetError, match="expected at least one recording"):
        export([], kind, tmp_path / "out", RATE)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from rollouts import painted
from vlp_gym.data.exports import export
def stream():
    yield painted("push-v3", "expert", 0, 12, 48)
    os.kill(os.getpid(), signal.SIGKILL)
export(stream(), sys.argv[1], Path(sys.argv[2]), 5.0)
"""


@kinds
def test_killed_it_leaves_nothing_half(kind, tmp_path):
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [tests.parent, tests]))}
    ended = subprocess.run([sys.executable, "-c", KILLED, kind, str(tmp_path / "out")], env=environment, check=False)
    assert ended.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert any(left.rglob("*"))
    export(rollouts()[:1], kind, tmp_path / "out", RATE)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@kinds
@pytest.mark.parametrize("damage", ["cut", "other", "short", "null"])
def test_a_damaged_file_of_ours_is_told(kind, damage, tmp_path):
    import pyarrow as pa

    export(rollouts()[:2], kind, tmp_path / "out", RATE)
    path = tmp_path / "out" / FIELDS_AT[kind]
    table = pq.read_table(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        pq.write_table(table.slice(0, 1), path)
    elif damage == "short":
        pq.write_table(
            pa.concat_tables([table.slice(1, 1), table.slice(1, 1)]).set_column(0, "episode_index", [[0, 1]]), path
        )
    else:
        pq.write_table(table.set_column(0, "episode_index", pa.array([0, None], pa.int64())), path)
    expected = {
        "other": "expected a row of this episode, found none; if the data set was changed, delete this file",
        "short": "expected fields of 12 frames, found 13; if the data set was changed, delete this file",
        "null": "expected a number and a task in each row, found null",
    }
    with pytest.raises(DatasetError, match=expected.get(damage, FIELDS)):
        list(open_source(f"{kind}:{tmp_path / 'out'}", READ).stream())
