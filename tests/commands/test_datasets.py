"""`vlp-gym data`, and other people's data as --data of the other commands."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

import pyarrow.parquet as pq
from clips import write
from command_line import run
from lerobot_files import write_dataset
from PIL import Image
from rollouts import painted, write_tasks

from vlp_gym.data.shards import load_trajectories
from vlp_gym.data.sources import SourceOptions, open_source
from vlp_gym.data.trajectory import TIERS

TASKS = ("fold the towel", "stack the cups")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A video of each tier of two tasks, painted rollouts of 12 frames at 25 a second."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [("file", "sentence", "tier", "group")]
    for task, like in zip(TASKS, ("push-v3", "reach-v3"), strict=True):
        for number, tier in enumerate(TIERS):
            file = f"{task}-{tier}.mp4"
            write(folder / file, painted(like, tier, number, frames=12, size=64).frames)
            rows.append((file, f"{task}{' now' * number}", tier, task))
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_inspect(clips, tmp_path, capsys):
    assert run("data", "inspect", f"videos:{clips}", "--fps", 25, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [f"| {task} | 1 expert, 1 medium, 1 random | 1 | 12 to 12 | 3 | {task} |" for task in TASKS]
    assert [line.partition(":")[0] for line in lines[4:-1]] == ["lacking"] * 2  # actions and positions
    assert lines[-1] == f"examples: {tmp_path / 'examples.png'}"
    picture = np.array(Image.open(tmp_path / "examples.png"))
    assert picture.std() > 20


def test_convert_goes_on_where_it_ended(clips, tmp_path, capsys, monkeypatch):
    from vlp_gym.data import shards

    def interrupt(*arguments):
        if "stack" in arguments[1].name:
            raise KeyboardInterrupt
        written(*arguments)

    written, out = shards.write_shard, tmp_path / "out"
    monkeypatch.setattr(shards, "write_shard", interrupt)
    command = ("data", "convert", f"videos:{clips}", "--fps", 25, "--size", 64, "--out", out)
    assert run(*command) == 130
    assert "finished tasks are kept" in capsys.readouterr().err
    monkeypatch.setattr(shards, "write_shard", written)
    assert run(*command) == 0
    assert capsys.readouterr().out.splitlines() == [f"2/2 {TASKS[1]}: 1 expert, 1 medium, 1 random", f"shards: {out}"]
    read = load_trajectories(out, progress_bar=False)
    assert [(t.task, t.tier, len(t.frames)) for t in read] == [(task, tier, 12) for task in TASKS for tier in TIERS]
    assert run("data", "convert", f"videos:{clips}", "--fps", 5, "--out", out) == 2
    assert "converted with another fps, size; choose another --out" in capsys.readouterr().err
    (out / "convert.json").write_text("[]")
    assert run(*command) == 2
    assert "convert.json: damaged" in capsys.readouterr().err
    (out / "convert.json").unlink()
    assert run(*command) == 2
    assert "there are other rollouts; choose another --out" in capsys.readouterr().err


def test_videos_and_shards_train_and_are_judged(clips, tmp_path):
    shards, source, model = tmp_path / "shards", f"videos:{clips}", tmp_path / "model"
    assert run("data", "convert", source, "--out", shards) == 0
    arguments = ("--split", "data", "--steps", 2, "--tasks-per-batch", 2, "--relevance-steps", 1, "--out", model)
    assert run("train", "staged", "--data", source, *arguments) == 0
    figures = []
    for name, data in (("videos", source), ("shards", shards)):
        assert run("eval", "--model", model, "--data", data, "--split", "data", "--out", tmp_path / name) == 0
        result = json.loads((tmp_path / name / "results.json").read_text())
        assert result["tasks"] == list(TASKS)
        figures.append(result["mean"])
    assert figures[0].keys() == figures[1].keys()
    assert run("score", "--dataset", source, "--model", model, "--out", tmp_path / "scores") == 0
    rows = json.loads((tmp_path / "scores" / "scores.json").read_text())["videos"]
    assert sorted({row["task"] for row in rows}) == list(TASKS)


def test_lerobot_is_converted_with_its_actions(tmp_path, capsys):
    folder = write_dataset(tmp_path / "set")
    assert run("data", "convert", f"lerobot:{folder}", "--out", tmp_path / "out", "--fps", 25) == 0
    read = load_trajectories(tmp_path / "out", progress_bar=False)
    shapes = {f"{trajectory.task}, {trajectory.tier}": trajectory.action.shape for trajectory in read}
    assert shapes == {
        "close the drawer, expert": (7, 2), "open the door, expert": (11, 2), "open the door, near_miss": (9, 2),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["lerobot", "minari"])
def test_export_and_back(clips, kind, tmp_path, capsys):
    """A folder of videos in other formats, and from there as shards: the same ones as without the detour."""
    pytest.importorskip("h5py")
    out = tmp_path / "out"
    assert run("data", "convert", f"videos:{clips}", "--size", 64, "--to", kind, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 6 episodes of 2 tasks, 24 frames at 5 a second"
    assert lines[1].startswith("in vlp_gym.parquet, which only vlp_gym reads: tiers; further sentences;")
    for name, source in (("direct", f"videos:{clips}"), ("back", f"{kind}:{out}")):
        assert run("data", "convert", source, "--size", 64, "--out", tmp_path / name) == 0
    for one, other in zip(
        *(load_trajectories(tmp_path / x, progress_bar=False) for x in ("direct", "back")), strict=True
    ):
        assert (one.name, one.sentences, one.camera) == (other.name, other.sentences, other.camera)
        assert np.array_equal(one.step, other.step)
        assert np.abs(one.frames.astype(int) - other.frames).mean() < 3
    capsys.readouterr()
    assert run("data", "convert", f"videos:{clips}", "--to", kind, "--out", out) == 2
    assert "expected a new or an empty folder, found files; choose another --out" in capsys.readouterr().err
    assert run("data", "inspect", f"{kind}:{out}", "--instruction", "go") == 2
    assert "have sentences of their own" in capsys.readouterr().err


def test_lerobot_is_annotated(model, tmp_path):
    """What its reward-aware training reads: a row for each frame of the data set."""
    folder = write_dataset(tmp_path / "set")
    command = ("score", "--dataset", f"lerobot:{folder}", "--model", model, "--tasks", "open the door")
    assert run(*command, "--out", tmp_path / "scores") == 0
    table = pq.read_table(tmp_path / "scores" / "progress.parquet")
    assert table.schema.metadata[b"reward_model_path"] == str(model).encode()
    columns = table.to_pydict()
    assert columns["episode_index"] == [0] * 12 + [2] * 10
    assert columns["frame_index"] == [*range(12), *range(10)]
    assert columns["index"] == [*range(12), *range(20, 30)]
    rows = json.loads((tmp_path / "scores" / "scores.json").read_text())["videos"]
    for row, start in zip(rows, (0, 12), strict=True):
        found = np.array(columns["progress_sparse"])[start + np.array(row["step"])]
        assert found == pytest.approx(row["value"], abs=1e-6)


def test_our_own_export_is_annotated_by_episode_and_row(model, tmp_path):
    """Seeds and steps of its rollouts are others than the numbers of episodes and rows."""
    write_tasks(
        tmp_path / "shards", [painted(t, "expert", 3, 9 + k, 64) for k, t in enumerate(("push-v3", "reach-v3"))]
    )
    out = tmp_path / "out"
    assert run("data", "convert", tmp_path / "shards", "--to", "lerobot", "--out", out) == 0
    assert run("score", "--dataset", f"lerobot:{out}", "--model", model, "--out", tmp_path / "scores") == 0
    columns = pq.read_table(tmp_path / "scores" / "progress.parquet").to_pydict()
    assert columns["index"] == list(range(19))
    assert columns["episode_index"] == [0] * 9 + [1] * 10
    rows = json.loads((tmp_path / "scores" / "scores.json").read_text())["videos"]
    assert rows[0]["step"] == list(range(0, 45, 5))
    assert columns["progress_sparse"] == pytest.approx([*rows[0]["value"], *rows[1]["value"]], abs=1e-6)


def minari_rewards(path):
    minari = pytest.importorskip("minari")
    data = minari.MinariDataset(path / "data")
    return data, [episode.rewards for episode in data]


def test_minari_gets_new_rewards(model, tmp_path, capsys):
    rollouts = [painted("push-v3", "expert", k, 9 + 20 * k, 64) for k in (0, 1)]
    write_tasks(tmp_path / "shards", rollouts)
    assert run("data", "convert", tmp_path / "shards", "--to", "minari", "--out", tmp_path / "pushes") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "pushes").rglob("*") if path.is_file()}
    for ours in (True, False):  # a data set of others has neither our file nor sentences
        scores, more = tmp_path / f"scores-{ours}", () if ours else ("--instruction", "push it")
        command = ("score", "--dataset", f"minari:{tmp_path / 'pushes'}", "--model", model, *more, "--out", scores)
        if not ours:
            (tmp_path / "pushes/data/vlp_gym.parquet").unlink()
            before.pop(tmp_path / "pushes/data/vlp_gym.parquet")
            assert run(*command[:5], "--out", scores) == 2
            assert "a Minari data set has no sentences; say what its task is" in capsys.readouterr().err
        assert run(*command) == 0
        (copy,) = [path for path in scores.iterdir() if path.is_dir()]
        assert str(copy) in capsys.readouterr().out
        rows = json.loads((scores / "scores.json").read_text())["videos"]
        data, rewards = minari_rewards(copy)
        assert data.spec.dataset_id == copy.name
        assert data.storage.metadata["reward_model"] == str(model)
        first = np.array(rows[0]["value"], np.float32)
        assert np.allclose(rewards[0], first[1:], atol=1e-6)
        shown = np.array(rows[1]["step"]) // (5 if ours else 1)
        assert np.allclose(rewards[1], np.interp(np.arange(1, 29), shown, rows[1]["value"]), atol=1e-6)
        own, _ = minari_rewards(tmp_path / "pushes")
        for one, other in zip(data, own, strict=True):
            assert np.array_equal(one.observations["pixels"], other.observations["pixels"])
            assert np.array_equal(one.actions, other.actions)
        if ours:
            read, _ = open_source(f"minari:{copy}", SourceOptions(size=64)).stream()
            assert np.allclose(read.reward[1:], first[1:], atol=1e-6)
            assert np.allclose(read.episode_reward[4::5], first[1:], atol=1e-6)
        assert run(*command) == 2
        assert "expected a new or an empty folder, found files" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before


def test_broken_recordings_are_counted(clips, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    write(folder / "a.mp4", painted("push-v3", "expert", frames=9, size=64).frames)
    (folder / "b.mp4").write_bytes(b"no video")
    command = ("data", "convert", f"videos:{folder}", "--instruction", "go", "--out", tmp_path / "out")
    assert run(*command) == 2
    assert f"{folder / 'b.mp4'}: " in capsys.readouterr().err
    assert run(*command, "--skip-broken") == 0
    shown = capsys.readouterr().out
    assert "1/1 go: 1 expert" in shown
    assert "left out: 1 recordings that cannot be read" in shown
    assert f"  {folder / 'b.mp4'}: " in shown
    (folder / "a.mp4").unlink()
    assert run("data", "inspect", f"videos:{folder}", "--instruction", "go", "--skip-broken", "--out", tmp_path) == 2
    assert "expected at least one recording that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "videos:CLIPS"), "--out: expected a folder for what is converted"),
        (("inspect", "videos:CLIPS", "--size", "8"), "--size: expected 16 to 1024 pixels, got 8"),
        (("inspect", "videos:CLIPS", "--tasks", "fold the tovel"), "no task 'fold the tovel' in the data set; did you"),
        (("inspect", "videos:CLIPS", "--instruction", "x"), "has a sentence for each video; remove one of them"),
        (("inspect", "nothing"), "nothing: expected parquet shards in nothing/data, found none"),
        (("inspect", "lerobot:nothing"), "info.json: expected a file of a LeRobot data set, found none"),
    ],
)
def test_errors(clips, arguments, message, capsys):
    assert run("data", *(argument.replace("CLIPS", str(clips)) for argument in arguments)) == 2
    assert message in capsys.readouterr().err


def test_a_task_that_no_data_set_has(clips, model, capsys):
    assert run("score", "--dataset", f"videos:{clips}", "--model", model, "--tasks", "dance") == 2
    assert "no trajectories of dance" in capsys.readouterr().err


def test_the_data_set_is_looked_for_before_the_model(tmp_path, capsys):
    assert run("score", "--dataset", tmp_path / "no-data", "--model", tmp_path / "no-model") == 2
    assert f"{tmp_path / 'no-data'}: expected parquet shards" in capsys.readouterr().err
