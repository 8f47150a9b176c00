"""One line for each error of a command."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import run

from vlp_gym.models import registry

pytestmark = pytest.mark.usefixtures("two_training_tasks")

STEPS = "--steps: expected at least 1, or 0 with a staged --init and --relevance-steps, got 0"


class TestErrors:
    """One line, status 2."""

    def error(self, capsys, *arguments):
        assert run(*arguments) == 2
        shown = capsys.readouterr().err
        line = shown.splitlines()[-1]  # after progress bars
        assert line.startswith("vlp-gym: error: ")
        assert "Traceback" not in shown
        return line.removeprefix("vlp-gym: error: ")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--tasks", "buton-press"], "unknown Meta-World task 'buton-press-v3'; did you mean button-press-v3 or "),
            (["--per-tier", "-1"], "--per-tier: expected at least 0, got -1"),
            (["--per-tier", "0"], "expected something to collect"),
            (["--near-miss", "-1"], "--near-miss: expected at least 0, got -1"),
            (["--stride", "0"], "--stride: expected at least 1, got 0"),
            (["--size", "8"], "--size: expected 16 to 1024 pixels, got 8"),
            (
                ["--size", "1024", "--stride", "1"],
                "--size 1024 with --stride 1: expected at most 128 megapixels in the frames of a rollout, got up to "
                "316; lower --size or raise --stride",
            ),
            (["--varied-share", "1.5"], "--varied-share: expected 0 to 1, got 1.5"),
            (["--workers", "0"], "--workers: expected at least 1, got 0"),
            (["--agent", "1", "--agent-model", "nobody"], "unknown reward model 'nobody'"),
        ],
    )
    def test_collect(self, capsys, tmp_path, options, message):
        assert self.error(capsys, "collect", "metaworld", "--out", tmp_path / "new", *options).startswith(message)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--steps", "0"], STEPS),
            (["--save-every", "0"], "--save-every: expected at least 1, got 0"),
            (["--init", "vlp-compact", "--steps", "0", "--relevance-steps", "0"], STEPS),
            (["--relevance-steps", "-1"], "--relevance-steps: expected at least 0, got -1"),
            (["--clips-per-task", "2"], "--clips-per-task: expected at least 3, got 2"),
            (["--warmup", "1.5"], "--warmup: expected a share from 0 to 1, got 1.5"),
            (["--weight-decay", "-0.1"], "--weight-decay: expected at least 0, got -0.1"),
            (
                ["--tasks", "push-v3", "window-open-v3"],
                "--tasks: expected training tasks of split vlp, got window-open-v3",
            ),
            (
                ["--tasks", "push-v3", "--leave-out", "push-v3"],
                "--leave-out: nothing is left to train on, got push-v3",
            ),
            (
                ["--leave-out", "push"],
                "--leave-out: expected training tasks of split vlp, got push; did you mean push-v3?",
            ),
            (["--tasks-per-batch", "9"], "tasks_per_batch: expected 2 to 2 (the tasks there are), got 9"),
        ],
    )
    def test_train(self, capsys, data, tmp_path, options, message):
        assert self.error(capsys, "train", "staged", "--data", data, "--out", tmp_path / "run", *options) == message

    def test_focus(self, capsys, data, tmp_path):
        options = ("--tasks-per-batch", "2", "--focus", "window-open-v3")
        line = self.error(capsys, "train", "joint", "--data", data, "--out", tmp_path / "run", *options)
        assert line == "--focus: expected tasks that are trained on, got window-open-v3"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["clip.mp4"], "--instruction: expected what is to be done in the video, in one sentence"),
            (["clip.mp4", "--dataset", "data"], "expected videos or --dataset, and not both"),
            ([], "expected videos or --dataset, and not both"),
            (["--dataset", "data", "--threshold", "2"], "--threshold: expected -1 to 1, got 2.0"),
            (["--dataset", "data", "--temperature", "-1"], "--temperature: expected 0 to 100, got -1.0"),
            (["clip.mp4", "--tasks", "push-v3"], "--tasks: only --dataset has tasks, got videos"),
        ],
    )
    def test_score(self, capsys, data, model, tmp_path, options, message):
        options = [data if option == "data" else option for option in options]
        assert self.error(capsys, "score", *options, "--model", model, "--out", tmp_path) == message

    def test_convert_and_calibrate(self, capsys, data, tmp_path):
        line = self.error(capsys, "convert", "vip", tmp_path / "vip.pt", "--out", tmp_path, "--tokenizer", "here")
        assert line == "--tokenizer: only r3m takes it, got it for vip"
        line = self.error(capsys, "convert", "roboclip", tmp_path / "s3d.pt", "--out", tmp_path)
        assert line == "--vocabulary: roboclip needs the released s3d_dict.npy, or its words as .txt or .json"
        line = self.error(capsys, "calibrate", "vlp-compact", "--data", data, "--out", tmp_path)
        assert line == "expected an ensemble such as 'ensemble:mean|vlp-compact|vlp-compact-45', got 'vlp-compact'"

    def test_no_data(self, capsys, tmp_path):
        expected = (
            f"{tmp_path}: expected parquet shards in {tmp_path / 'data'}, found none; "
            f"run: vlp-gym collect metaworld --out {tmp_path}"
        )
        assert self.error(capsys, "train", "staged", "--data", tmp_path) == expected

    def test_no_such_model(self, capsys, data, tmp_path):
        line = self.error(capsys, "eval", "--model", "vlp-compct", "--data", data, "--out", tmp_path / "report")
        assert line.startswith("unknown reward model 'vlp-compct': expected one of ")
        assert line.endswith("did you mean vlp-compact or vlp-compact-45?")

    def test_no_such_video(self, capsys, model, tmp_path):
        line = self.error(capsys, "score", tmp_path / "no.mp4", "--instruction", "push", "--model", model)
        assert line == f"{tmp_path / 'no.mp4'}: expected a video file, found none"

    def test_blank_instruction(self, capsys, model, video):
        assert self.error(capsys, "score", video, "--instruction", "  ", "--model", model)

    def test_no_pairs(self, capsys, data, model):
        line = self.error(capsys, "eval", "--model", model, "--data", data, "--pairs-per-task", "0")
        assert line == "--pairs-per-task: expected at least 1, got 0"

    def test_many_lines_become_one(self, capsys, monkeypatch):
        def fail():
            raise ValueError("first\n  second")

        monkeypatch.setattr(registry, "available_models", fail)
        assert self.error(capsys, "models") == "first second"

    def test_without_the_extra(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "tyro", None)
        assert self.error(capsys, "models") == 'the command line needs tyro: pip install "vlp_gym[train]"'

    def test_a_bug_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(registry, "available_models", lambda: [None])
        with pytest.raises(AttributeError):
            run("models")
