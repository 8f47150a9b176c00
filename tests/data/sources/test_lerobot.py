"""LeRobot data sets: every frame, action and label where it belongs, and clear errors for damaged ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("datasets")

import pyarrow.parquet as pq
from lerobot_files import CAMERA, LENGTHS, RATE, TASKS, episode, write_dataset

from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.errors import DatasetError

EVERY = SourceOptions(size=48, fps=RATE)
ROWS = "data/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("lerobot") / "set")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "set")


@pytest.mark.parametrize(("version", "video"), [("v3.0", True), ("v3.0", False), ("v2.1", True), ("v2.1", False)])
def test_each_episode_is_what_was_written(tmp_path, version, video):
    source = open_source(f"lerobot:{write_dataset(tmp_path / 'set', version, video=video)}", EVERY)
    assert source.tasks() == sorted(set(TASKS))
    read = list(source.stream())
    assert [trajectory.seed for trajectory in read] == [0, 1, 2]
    for number, trajectory in enumerate(read):
        frames, state, action, reward, success = episode(number)
        assert trajectory.task == TASKS[number]
        assert trajectory.sentences == (TASKS[number],)
        assert trajectory.tier == ("expert" if number != 2 else "near_miss")
        # Each frame is a grey of its own; 64 x 48 became 48 x 48, and a video is lossy.
        assert np.abs(trajectory.frames.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 2
        assert trajectory.step.tolist() == list(range(LENGTHS[number]))
        assert np.array_equal(trajectory.observation, state)
        assert np.array_equal(trajectory.action, action[:-1])
        assert np.array_equal(trajectory.episode_reward, reward[:-1])
        assert np.array_equal(trajectory.reward, np.r_[np.float32(0), reward[:-1]])
        assert trajectory.success.tolist() == [False, *success[:-2], success[-2] | success[-1]]


def test_fewer_frames_a_second_keep_every_row_and_the_end(folder):
    read = list(open_source(f"lerobot:{folder}", SourceOptions(size=48, fps=5)).stream())
    assert [trajectory.step.tolist() for trajectory in read] == [[0, 5, 10, 11], [0, 5, 7], [0, 5, 9]]
    assert [len(trajectory.action) for trajectory in read] == [length - 1 for length in LENGTHS]
    whole = list(open_source(f"lerobot:{folder}", EVERY).stream())
    for some, every in zip(read, whole, strict=True):
        assert np.array_equal(some.frames, every.frames[some.step])
        assert np.array_equal(some.success, every.success[some.step])


def test_one_task(folder):
    (only,) = open_source(f"lerobot:{folder}", EVERY).stream(["close the drawer"])
    assert only.seed == 1


def test_demonstrations_without_success_succeed_at_the_end(folder):
    rows = pq.read_table(folder / ROWS)
    pq.write_table(rows.drop_columns(["next.success", "next.reward"]), folder / ROWS)
    for trajectory in open_source(f"lerobot:{folder}", EVERY).stream():
        assert trajectory.tier == "expert"
        assert trajectory.success.tolist() == [*[False] * (len(trajectory.frames) - 1), True]
        assert not trajectory.reward.any()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def edit(folder, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_rest_goes_on_after_a_broken_episode(folder):
    rows = pq.read_table(folder / ROWS)
    pq.write_table(rows.slice(0, 15), folder / ROWS)  # the second has lost rows, the third all of them
    source, broken = open_source(f"lerobot:{folder}", EVERY), []
    assert [trajectory.seed for trajectory in source.stream(on_broken=broken.append)] == [0]
    assert [str(error) for error in broken] == [
        f"{folder}, episode 1: expected 8 rows in file-000.parquet, found 3",
        f"{folder}, episode 2: expected its rows in {folder / ROWS}, found none; the download may be incomplete",
    ]
    with pytest.raises(DatasetError, match="episode 1: expected 8 rows"):
        list(source.stream())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / VIDEO), r"episode 0: .*file-000\.mp4: cannot be decoded, it is damaged"),
        (lambda f: (f / VIDEO).unlink(), r"episode 0: .*file-000\.mp4: expected a video file, found none"),
        (lambda f: truncate(f / ROWS), r"episode 0: .*file-000\.parquet: "),
        (lambda f: (f / ROWS).unlink(), r"episode 0: expected its rows in .*, found none; the download may"),
        (lambda f: (f / "meta/info.json").unlink(), r"info\.json: expected a file of a LeRobot data set, found none"),
        (lambda f: (f / "meta/info.json").write_text("{"), r"info\.json: no JSON document"),
        (lambda f: (f / "meta/info.json").write_text("[" * 10**5), r"info\.json: no JSON document"),
        (lambda f: edit(f, codebase_version="v1.6"), r"of version v3\.0 or v2\.1, got 'v1\.6'"),
        (lambda f: edit(f, fps=0), "fps: expected a rate, got 0"),
        (lambda f: edit(f, features={"action": {"dtype": "float32"}}), "expected a camera among its features"),
        (lambda f: edit(f, features=[]), "features: expected a table"),
        (lambda f: shutil.rmtree(f / "meta/episodes"), "meta/episodes, found none; the download may be incomplete"),
    ],
)
def test_a_damaged_one_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(DatasetError, match=message):
        list(open_source(f"lerobot:{folder}", EVERY).stream())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tasks", [[""], ["b"], ["c"]], "episode 0: the instruction is empty"),
        ("tasks", [[], ["b"], ["c"]], "episode 0: expected tasks, its sentences, got "),
        ("length", [-1, 8, 10], "length: expected a whole number, got -1"),
        ("length", [11, 8, 10], "episode 0: expected 11 rows in file-000.parquet, found 12"),
        ("data/file_index", [-1, 0, 0], r"expected data/chunk_index and data/file_index, got \(0, -1\)"),
        (f"videos/{CAMERA}/from_timestamp", [9.0, 0.48, 0.8], "episode 0: .*file-000.mp4: no frame between"),
        (f"videos/{CAMERA}/from_timestamp", [0.9, 0.48, 0.8], "episode 0: expected 12 frames in .*, found 8"),
        (f"videos/{CAMERA}/from_timestamp", [-1.0, 0.48, 0.8], "episode 0: expected the time where it begins, got -1"),
    ],
)
def test_a_lying_description_is_refused(folder, column, value, message):
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    import pyarrow as pa

    pq.write_table(table.set_column(place, column, pa.array(value, table.schema.field(column).type)), path)
    with pytest.raises(DatasetError, match=message):
        list(open_source(f"lerobot:{folder}", EVERY).stream())


def test_another_camera(folder):
    with pytest.raises(DatasetError, match=rf"--camera: expected one of {CAMERA}, got 'wrist'"):
        open_source(f"lerobot:{folder}", SourceOptions(camera="wrist"))


def test_the_hub_is_asked_for_what_is_not_here(folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert open_source("lerobot:org/name").tasks() == sorted(set(TASKS))
    assert asked == ["org/name"]

    def fail(name, **_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DatasetError, match=r"org/name: no such folder in .*, and the hub delivered .*\(no network\)"):
        open_source("lerobot:org/name")
