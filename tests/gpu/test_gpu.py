"""Every part of the GPU check, small and on whatever device there is; and what runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gpu import wheels
from tests.gpu.equality import Played
from tests.gpu.graphs import GraphedModel
from tests.gpu.models import qwen_config
from tests.gpu.report import Figure, Outcome, document, of_many, settled, table
from tests.gpu.run import PARTS, Part, in_process, in_subprocess, run
from tests.gpu.scenes import first_that_renders
from tests.gpu.sizes import FULL, SMALL
from tests.tiny import tiny_model
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.testing import painted_value

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).parents[2]
CLEAN = {f"{mode}: {what}": 0 for mode in ("sync", "async") for what in ("tickets lost", "answers doubled")}
SOME = {
    "equality": {**CLEAN, "scores that differ between modes": 0, "SB3: lost": 0, "SB3: sampled wrong": 0},
    "throughput": dict.fromkeys(("eager, engine / bare loop", "CUDA graphs, engine / bare loop")),
    "environment": dict.fromkeys(("1 environment, late rewards / bare", "2 environments, late rewards / bare")),
    "memory": {"threads left": 0},
    "training": dict.fromkeys(
        f"{name}: {what}"
        for name in ("VLP", "SPUR")
        for what in ("peak memory, forward", "training step, 2 pairs", "peak memory, training step")
    ),
    "frames": dict.fromkeys(
        f"{name}, {precision}, batch {batch}"
        for name in ("vlp-compact", "vlp")
        for precision in ("float32", "bfloat16")
        for batch in SMALL.batches
    ),
}
"""Figures of each part, and the value of those that have one."""


@pytest.mark.filterwarnings("ignore:the reward model does not know such pictures")  # time and memory are the same
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_runs_small(part):
    events = []
    error = in_process(part, "small", DEVICE, 0.0, events.append)
    figures = {event["figure"]["name"]: Figure(**event["figure"]) for event in events if "figure" in event}
    assert error == ""
    assert [figure for figure in figures.values() if not figure.passed] == []
    for name, value in SOME[part.name].items():
        assert figures[name].value == value if value is not None else figures[name].value > 0
    assert events[0]["machine"]["torch"] == torch.__version__.split("+")[0]


class TestBooks:
    """The judge of the equality part."""

    def answer(self, step, preference=None, relevance=None):
        own, oldest = painted_value(0, 0, step), painted_value(0, 0, max(0, step - 3))
        score = FrameScore(preference or own, None, relevance if relevance is not None else oldest)
        return Answer(Ticket(0, 0, step), score)

    def played(self, *answers):
        played = Played(places={0: 0})
        played.open[0] = {Ticket(0, 0, step) for step in range(6)}
        for answer in answers:
            played.note(answer, 4)
        return played

    def test_what_is_right_is_counted_nowhere(self):
        played = self.played(*(self.answer(step) for step in range(6)))
        assert (played.lost, played.counts) == (0, {"doubled": 0, "disordered": 0, "wrong": 0})

    def test_a_score_of_another_frame_or_window_is_wrong(self):
        assert self.played(self.answer(4, preference=painted_value(0, 0, 3))).counts["wrong"] == 1
        assert self.played(self.answer(4, relevance=painted_value(0, 0, 0))).counts["wrong"] == 1

    def test_twice_is_doubled_and_back_is_disordered(self):
        assert self.played(self.answer(1), self.answer(1)).counts["doubled"] == 1
        assert self.played(self.answer(2), self.answer(1)).counts["disordered"] == 1

    def test_without_an_answer_it_is_lost_unless_a_fault_has_spoiled_its_episode(self):
        assert self.played(self.answer(0)).lost == 5
        assert self.played(Answer(Ticket(0, 0, 0), None, ValueError())).lost == 0
        played = self.played(self.answer(0))
        played.give_up(0)
        assert played.lost == 0


@torch.inference_mode()
def test_graphs_change_no_answer():
    model = tiny_model().to(DEVICE).eval()
    graphed = GraphedModel(model, largest=4)
    text = graphed.encode_text(["press the button"])
    rng = np.random.default_rng(0)
    for count in (3, 1, 4, 2, 3, 6):  # 3 in the rows of 4, after another 4 were there; 6 is over the largest
        frames = torch.from_numpy(rng.integers(0, 256, (count, 32, 32, 3), np.uint8)).to(DEVICE)
        tokens = graphed.encode_frames(frames)
        torch.testing.assert_close(tokens, model.encode_frames(frames))
        windows = tokens[:, None].expand(-1, model.window, -1, -1)
        mask = torch.arange(model.window, device=DEVICE) >= torch.arange(count, device=DEVICE)[:, None] % 3
        arguments = (windows, text.expand(count, -1, -1), mask)
        expected, got = model.score(*arguments), graphed.score(*arguments)
        for head in ("preference", "progress", "relevance"):
            torch.testing.assert_close(getattr(got, head), getattr(expected, head))


def test_the_base_is_as_large_as_the_published_one():
    from transformers import Qwen2_5_VLForConditionalGeneration

    from tests.tiny_qwen import tiny_tokenizer

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            qwen_config(FULL, tiny_tokenizer()), dtype=torch.bfloat16
        )
    published = 7_509_245_952  # bytes, the total_size of Qwen2.5-VL-3B-Instruct's weights in bfloat16
    assert 2 * sum(weight.numel() for weight in model.parameters()) == published


def test_an_environment_that_does_not_render_gives_way_to_the_next():
    scene, reasons = first_that_renders(("unknown", "drawn"), 16)
    assert scene == "drawn"
    known = 'expected "metaworld", "gymnasium" or "drawn"'
    assert reasons == f"unknown: ValueError: scene: {known}, got 'unknown'"
    with pytest.raises(RuntimeError, match=f"^no environment renders here \\({re.escape(reasons)}\\)$"):
        first_that_renders(("unknown",), 16)


class TestRun:
    PARTS = tuple(Part(name, "", 10.0, 1.0) for name in ("good", "raises", "misses", "empty"))
    FIGURES = {  # noqa: RUF012
        "good": [Figure("speed", 3.0, "ms", 2.0, 4.0), Figure("name", "a | b")],
        "raises": [Figure("before it raised", 1)],
        "misses": [Figure("lost", 2, at_most=0), Figure("answered", 1, at_least=2)],
    }

    def launch(self, part, size, device, limit_s, note):
        note({"machine": {"gpu": "a GPU"}})
        for figure in self.FIGURES.get(part.name, []):
            note({"figure": asdict(figure)})
        return "ValueError: no" if part.name == "raises" else ""

    def test_a_failing_part_is_recorded_and_the_others_go_on(self, tmp_path):
        run(self.PARTS, "small", "cpu", tmp_path / "out", 100.0, self.launch)
        result = json.loads((tmp_path / "out" / "gpu.json").read_text())
        assert result["machine"] == {"gpu": "a GPU"}
        outcomes = {part["part"]: part for part in result["parts"]}
        assert [(part["part"], part["status"], part["reason"]) for part in result["parts"]] == [
            ("good", "passed", ""),
            ("raises", "failed", "ValueError: no"),
            ("misses", "failed", "lost: 2, at most 0; answered: 1, at least 2"),
            ("empty", "failed", "it measured nothing"),
        ]
        assert outcomes["raises"]["figures"][0]["name"] == "before it raised"
        assert [figure["passed"] for figure in outcomes["misses"]["figures"]] == [False, False]

    @pytest.mark.parametrize(("size", "needs"), [("small", 1), ("full", 10)])
    def test_no_budget_skips_with_a_reason(self, size, needs, tmp_path):
        outcomes = run(self.PARTS[:2], size, "cpu", tmp_path, 0.0, self.launch)
        reason = f"it may take {needs} s, and 0 s of 0 s are left"
        assert outcomes == [Outcome(name, "skipped", reason=reason) for name in ("good", "raises")]
        assert f"| raises | skipped | 0 | {reason} |" in (tmp_path / "gpu.md").read_text()

    def test_what_is_left_limits_a_part(self, tmp_path):
        limits = []

        def launch(part, size, device, limit_s, note):
            limits.append(limit_s)
            return ""

        run(self.PARTS[:1], "small", "cpu", tmp_path, 1000.0, launch)
        run(self.PARTS[:1], "small", "cpu", tmp_path, 2.0, launch)
        assert limits[0] == 2.5
        assert 1.0 <= limits[1] <= 2.0

    def test_the_table_has_a_row_for_each_figure(self, tmp_path):
        run(self.PARTS, "small", "cpu", tmp_path, 100.0, self.launch)
        rows = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("| ")]
        assert rows[2 + len(self.PARTS) + 2 :] == [
            "| good | speed | 3 ms | 2 to 4 |  |",
            "| good | name | a / b |  |  |",
            "| raises | before it raised | 1 |  |  |",
            "| misses | lost | 2 |  | at most 0 (missed) |",
            "| misses | answered | 1 |  | at least 2 (missed) |",
        ]
        assert "- gpu: a GPU" in (tmp_path / "gpu.md").read_text()


class TestFigures:
    def test_the_median_and_range(self):
        figure = of_many("speed", [3, 1, 2], "ms", aim=0.93)
        assert figure == Figure("speed", 2.0, "ms", 1.0, 3.0, aim=0.93)
        assert (figure.bar, figure.passed) == ("aim: 0.93", True)

    def test_nan_keeps_to_no_bar(self):
        assert not Figure("loss", float("nan"), at_least=0.0).passed
        assert settled("a", [Figure("loss", float("nan"), at_least=0.0)], "", 1.0).status == "failed"

    def test_the_document_is_json(self):
        outcome = Outcome("a", "passed", (Figure("speed", 12345.6),), seconds=1.0)
        assert json.loads(json.dumps(document({}, {}, [outcome])))["parts"][0]["figures"][0]["value"] == 12345.6
        assert "| a | speed | 12,346 |  |  |" in table({}, {}, [outcome])


class TestProcesses:
    PART = next(part for part in PARTS if part.name == "memory")

    def test_a_part_in_a_process_of_its_own(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        events = []
        assert in_subprocess(self.PART, "small", DEVICE, 100.0, events.append) == ""
        assert "machine" in events[0]
        assert events[-1]["figure"]["name"] == "threads left"

    def test_one_that_takes_too_long_is_stopped(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        events = []
        assert in_subprocess(self.PART, "small", DEVICE, 0.1, events.append) == "stopped after 0 s"
        assert events == []

    @pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
    def test_without_a_gpu_the_command_fails_and_says_so(self, tmp_path):
        command = [sys.executable, "-m", "tests.gpu", "--only", "memory", "--out", str(tmp_path), "--budget-s", "100"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 1, ended.stderr
        part = json.loads((tmp_path / "gpu.json").read_text())["parts"][0]
        assert part["reason"] == "RuntimeError: torch sees no CUDA device; try --size small --device cpu"


class TestWheels:
    def fake(self, folder, name):
        """A wheel of one module."""
        folder.mkdir(exist_ok=True)
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def test_what_is_missing_is_installed_without_a_network(self, tmp_path, monkeypatch):
        monkeypatch.setattr(wheels, "PACKAGES", ("numpy", "vlp-fake.one", "vlp_fake_two"))
        self.fake(tmp_path / "wheels", "vlp_fake_one")
        self.fake(tmp_path / "wheels", "numpy")
        assert wheels.install(tmp_path / "wheels", tmp_path / "site") == ["vlp_fake_two"]
        assert sorted(path.name for path in (tmp_path / "site").glob("*.py")) == ["vlp_fake_one.py"]

    def test_nothing_is_missing_here(self, tmp_path):
        assert wheels.install(tmp_path / "none", tmp_path / "site") == []
        assert not (tmp_path / "site").exists()

    def test_the_versions_that_are_installed_are_asked_for(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(wheels, "_pip", asked.extend)
        monkeypatch.setattr(wheels, "PACKAGES", ("numpy", "vlp-fake", "mujoco"))
        (tmp_path / "old-1.0-py3-none-any.whl").touch()
        assert wheels.download(tmp_path, "3.12", "aarch64", without=["mujoco"]) == 0.0
        assert asked[-2:] == [f"numpy=={np.__version__}", "vlp-fake"]
        assert asked[asked.index("--python-version") + 1] == "3.12"
        assert "manylinux2014_aarch64" in asked

    def test_more_than_the_limit_is_refused(self, tmp_path, monkeypatch, capsys):
        def pip(arguments):
            with (tmp_path / "large-1.0-py3-none-any.whl").open("wb") as file:
                file.truncate(61_000_000)

        monkeypatch.setattr(wheels, "_pip", pip)
        monkeypatch.setattr(sys, "argv", ["wheels", "--folder", str(tmp_path), "--python", "3.12", "--machine", "arm"])
        with pytest.raises(
            SystemExit, match=r"^expected at most 60 MB, got 61\.0 MB: leave something out by --without$"
        ):
            wheels.main()
        assert capsys.readouterr().out.splitlines()[-1] == f"  61.0 MB  in {tmp_path}, for Python 3.12 on arm"
