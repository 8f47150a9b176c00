"""A real Ctrl-C in each long command: one line, status 130, what was saved can be used, nobody is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from painted_segments import painted_store
from rollouts import painted, painted_tasks, with_steps, write_tasks
from tiny import tiny_model

from vlp_gym.data.trajectory import TIERS
from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.video import overlay_video

ROOT = Path(__file__).parents[2]
NOTHING = "nothing was written; the same command begins anew"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Running:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, *arguments, cwd):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "vlp_gym.commands.main", *map(str, arguments)]
        self.errors = cwd / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, holds):
        deadline = time.monotonic() + 200
        while not holds():
            assert self.process.poll() is None, self.shown()
            assert time.monotonic() < deadline, self.shown()
            time.sleep(0.02)

    def interrupt(self):
        """Ctrl-C goes to the whole group; returns the lines that it leads to, and what was printed."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGINT)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 130
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
        shown = self.shown()
        assert "Traceback" not in shown
        assert "Exception" not in shown
        # Progress bars end in a carriage return or are parts of a line.
        return re.findall(r"vlp-gym: .*", shown), out

    def shown(self):
        return self.errors.read_text()

    def end(self):
        """Wait for its end by itself; returns the status."""
        self.process.communicate(timeout=250)
        return self.process.returncode


def leftovers(folder):
    """Names of staged files; those of locks stay."""
    names = [path.name for path in folder.rglob("*")]
    return [name for name in names if name.startswith((".", "tmp")) and not name.endswith(".lock")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, painted_tasks(("push-v3", "reach-v3"), each=1, size=112))
    write_tasks(folder, [painted(task, tier, k) for task in TEST_TASKS for k, tier in enumerate(TIERS)])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("moment", ["while workers start", "after the first shard"])
def test_collect(tmp_path, moment):
    pytest.importorskip("metaworld")
    tasks = ("button-press-v3", "reach-v3")
    collect = (
        "collect", "metaworld", "--out", "new", "--tasks", *tasks, "--per-tier", "1", "--tiers", "random",
        "--size", "16", "--workers", "1",
    )  # fmt: skip
    running = Running(*collect, cwd=tmp_path)
    shards = tmp_path / "new" / "data"
    if moment == "while workers start":
        running.wait_for(lambda: len(psutil.Process(running.process.pid).children(recursive=True)) > 1)
        time.sleep(1.0)  # they import
    else:
        running.wait_for(lambda: list(shards.glob("*.parquet")))
    kept = "finished shards are kept, and the same command goes on from there"
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
    assert not leftovers(tmp_path / "new")
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert len(before) == (0 if moment == "while workers start" else 1)
    if before:
        again = Running(*collect, cwd=tmp_path)
        assert again.end() == 0
        after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
        assert len(after) == 2
        assert before.items() <= after.items()


def test_a_killed_collection_leaves_no_worker(tmp_path):
    pytest.importorskip("metaworld")
    running = Running(
        "collect", "metaworld", "--out", "new", "--per-tier", "50", "--tiers", "random", "--size", "16",
        "--workers", "1", cwd=tmp_path,
    )  # fmt: skip
    running.wait_for(lambda: len(psutil.Process(running.process.pid).children(recursive=True)) > 1)
    time.sleep(4.0)  # it has been given a task
    children = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    running.process.communicate(timeout=60)
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_train(data, tmp_path):
    train = (
        "train", "staged", "--data", data, "--split", "data", "--tasks", "push-v3", "reach-v3",
        "--tasks-per-batch", "2", "--clips-per-task", "3", "--save-every", "2", "--out", "run", "--steps", "100000",
    )  # fmt: skip
    kept = "the last saved state is kept, and the same command goes on from there"

    def until(steps):
        running = Running(*train, cwd=tmp_path)
        running.wait_for(lambda: len(history()) >= steps)
        assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
        return history()

    def history():
        path = tmp_path / "run" / "history.json"
        return json.loads(path.read_text()) if path.exists() else []

    before = until(2)
    after = until(len(before) + 2)
    assert after[: len(before)] == before  # also the seconds that each step took: it went on
    assert not leftovers(tmp_path / "run")


def test_policy(tmp_path):
    """Ctrl-C while the workers play episodes, then a kill in training: the same command goes on each time."""
    pytest.importorskip("metaworld")
    write_tasks(tmp_path / "data", [with_steps(rollout) for rollout in painted_tasks(["reach-v3"], each=2)])
    command = (
        "policy", "cpl", "--data", "data", "--task", "reach", "--pairs", "10", "--length", "20", "--seeds", "2",
        "--hidden", "16", "--batch", "4", "--bc-steps", "0", "--save-every", "20", "--evaluate-every", "100",
        "--episodes", "200", "--horizon", "100", "--workers", "2", "--out", "run", "--steps", "100000",
    )  # fmt: skip
    state = tmp_path / "run" / "training.json"

    def workers(running):
        return len(psutil.Process(running.process.pid).children(recursive=True))

    def done():
        return json.loads(state.read_text())["step"] if state.exists() else 0

    running = Running(*command, cwd=tmp_path)
    running.wait_for(lambda: workers(running) > 2)  # multiprocessing's own, and two that play
    time.sleep(4.0)
    kept = "the last saved state is kept, and the same command goes on from there"
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
    before = done()
    assert before == 80
    labels = (tmp_path / "run" / "labels" / "preferences.json").read_bytes()
    quick = [*command, "--episodes", "1", "--horizon", "5"]
    running = Running(*quick, cwd=tmp_path)
    running.wait_for(lambda: done() > before + 100)
    children = psutil.Process(running.process.pid).children(recursive=True)
    running.process.kill()
    running.process.communicate(timeout=60)
    assert not psutil.wait_procs(children, timeout=10)[1]
    after = done()
    assert after % 20 == 0
    running = Running(*quick, cwd=tmp_path)
    running.wait_for(lambda: done() > after)
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
    assert (tmp_path / "run" / "labels" / "preferences.json").read_bytes() == labels
    assert not leftovers(tmp_path / "run")


def test_label(model, tmp_path):
    painted_store().save(tmp_path / "segments")
    label = ("label", "segments", "--out", "new", "--labels", model, "--instruction", "push", "--pairs")
    running = Running(*label, "5000", cwd=tmp_path)
    running.wait_for((tmp_path / "new" / "preferences.json").exists)
    kept = "saved labels are kept, and the same command adds further pairs to them"
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
    before = len(PreferenceBuffer.load(tmp_path / "new"))
    assert before % 10 == 0
    assert 0 < before < 5000
    assert Running(*label, "7", cwd=tmp_path).end() == 0
    assert len(PreferenceBuffer.load(tmp_path / "new")) == before + 7
    assert not leftovers(tmp_path / "new")


def test_label_by_hand(tmp_path):
    painted_store().save(tmp_path / "segments")
    label = ("label", "segments", "--out", "new", "--human", "--instruction", "push", "--pairs", "3", "--no-browser")
    running = Running(*label, cwd=tmp_path)
    assert running.process.stdout.readline().startswith("3 pairs to label at http://127.0.0.1:")
    lines, out = running.interrupt()
    assert lines == ["vlp-gym: interrupted; saved labels are kept, and the same command adds further pairs to them"]
    assert out.splitlines() == ["3 pairs: 0 first, 0 second, 0 equal, 3 skipped", "preferences: new (0 pairs)"]


def test_score(model, tmp_path):
    for name in ("a", "b"):
        frames = painted("push-v3", "expert", frames=50, size=24).frames
        overlay_video(frames, np.zeros(len(frames)), tmp_path / "clips" / f"{name}.mp4", height=64)
    running = Running("score", "clips", "--instruction", "push", "--model", model, "--out", "all", cwd=tmp_path)
    assert running.process.stdout.readline().startswith("clips/a.mp4: reward ")
    kept = "finished files are kept; the same command begins anew"
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {kept}"]
    assert {path.name for path in (tmp_path / "all" / "a").iterdir()} == {
        "curve.png", "overlay.gif", "overlay.mp4", "rewards.json"
    }  # fmt: skip
    assert not leftovers(tmp_path / "all")


@pytest.mark.parametrize("command", ["eval", "tune", "convert"])
def test_a_command_that_writes_at_its_end(command, data, model, tmp_path):
    """Interrupted as soon as torch is being imported."""
    arguments = {
        "eval": ["--model", model, "--data", data, "--out", "new"],
        "tune": ["--model", model, "--data", data, "--tasks", "push-v3", "reach-v3"],
        "convert": ["vip", tmp_path / "vip.pt", "--out", "new"],
    }[command]
    (tmp_path / "vip.pt").write_bytes(bytes(1000))
    running = Running(command, *arguments, cwd=tmp_path)
    maps = Path(f"/proc/{running.process.pid}/maps")
    running.wait_for(lambda: "libtorch_cpu" in maps.read_text())
    assert running.interrupt()[0] == [f"vlp-gym: interrupted; {NOTHING}"]
    assert not (tmp_path / "new").exists()
