"""`vlp-gym label`: pairs of stored segments, labelled by the environment's rewards, a model, or a person."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("PIL")

from painted_segments import painted_store

from vlp_gym.commands.main import main
from vlp_gym.preferences import labelers
from vlp_gym.preferences.buffer import PreferenceBuffer

SENTENCE = ("--instruction", "press the button")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Episode k of six pays k + 1 a step; segments of 8 steps."""
    folder = tmp_path_factory.mktemp("segments")
    painted_store().save(folder)
    return folder


def run(*arguments):
    return main(["label", *(str(argument) for argument in arguments)])


class Person:
    """Presses keys on the page that the command prints; `capsys` cannot be read in a thread, so print is watched."""

    def __init__(self, monkeypatch, keys):
        self.keys, self.addresses = list(keys), []
        monkeypatch.setattr("builtins.print", self._print)
        self.printed = []
        self._thread = threading.Thread(target=self._label, daemon=True)
        self._thread.start()

    def _print(self, *values, **_):
        self.printed.append(" ".join(map(str, values)))

    def _label(self):
        while not self.printed:
            time.sleep(0.01)
        host, token = re.search("http://([^/]+)/([^/]+)/", self.printed[0]).groups()
        for pair, key in enumerate(self.keys):
            connection = http.client.HTTPConnection(host, timeout=10)
            connection.request(
                "POST", f"/{token}/label", json.dumps({"round": 1, "pair": pair, "label": key}), {"Host": host}
            )
            assert connection.getresponse().status == 200
            connection.close()


class TestScripted:
    def test_the_larger_return_wins(self, stored, tmp_path, capsys):
        assert run(stored, "--out", tmp_path, "--labels", "scripted", "--pairs", 40) == 0
        buffer = PreferenceBuffer.load(tmp_path)
        assert len(buffer) == 40
        returns = buffer.inputs[..., 0].sum(2)  # the state is the episode's number, as is what it pays but for 1
        np.testing.assert_array_equal(buffer.labels, (np.sign(returns[:, 0] - returns[:, 1]) + 1) / 2)
        first, equal, second = ((buffer.labels == value).sum() for value in (1, 0.5, 0))
        assert min(first, equal, second) > 0
        assert capsys.readouterr().out.splitlines() == [
            f"40 pairs: {first} first, {second} second, {equal} equal, 0 skipped",
            f"agreement with the environment's own return: 1.000 of the {first + second} that take a side",
            f"preferences: {tmp_path} (40 pairs)",
        ]

    def test_more_are_added_to_those_that_are_there(self, stored, tmp_path):
        command = (stored, "--out", tmp_path, "--labels", "scripted", "--pairs")
        assert run(*command, 3) == 0
        before = PreferenceBuffer.load(tmp_path)
        before.capacity = 3
        before.save(tmp_path)
        assert run(*command, 5, "--seed", 1, "--sampler", "k-center") == 0
        after = PreferenceBuffer.load(tmp_path)
        assert len(after) == 8
        np.testing.assert_array_equal(after.inputs[:3], before.inputs)

    def test_the_same_command_again_adds_other_pairs(self, stored, tmp_path):
        for _ in range(2):
            assert run(stored, "--out", tmp_path, "--labels", "scripted", "--pairs", 20) == 0
        once, again = np.split(PreferenceBuffer.load(tmp_path).inputs, 2)
        assert not np.array_equal(once, again)

    def test_the_seed_decides(self, stored, tmp_path):
        drawn = []
        for number, seed in enumerate((1, 2, 1)):
            assert run(stored, "--out", tmp_path / str(number), "--labels", "scripted", "--seed", seed) == 0
            drawn.append(PreferenceBuffer.load(tmp_path / str(number)).inputs)
        np.testing.assert_array_equal(drawn[0], drawn[2])
        assert not np.array_equal(drawn[0], drawn[1])

    def test_length_and_newest(self, stored, tmp_path):
        assert run(stored, "--out", tmp_path, "--labels", "scripted", "--length", 5, "--newest", 2) == 0
        buffer = PreferenceBuffer.load(tmp_path)
        assert buffer.inputs.shape == (100, 2, 5, 5)
        assert set(np.unique(buffer.inputs[..., 0])) == {4, 5}


class TestModel:
    @pytest.mark.parametrize("kind", ["reward", "preference"])
    def test_labels_of_the_model(self, stored, model, tmp_path, capsys, kind):
        assert run(stored, "--out", tmp_path, "--labels", model, *SENTENCE, "--kind", kind, "--pairs", 12) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"12 pairs: \d+ first, \d+ second, \d+ equal, 0 skipped", lines[0])
        assert len(PreferenceBuffer.load(tmp_path)) == 12

    def test_what_the_model_is_unsure_of_goes_to_another(self, stored, model, tmp_path, capsys):
        source = f"cascade:{model}|scripted|band=0.5|share=0.25"
        assert run(stored, "--out", tmp_path, "--labels", source, *SENTENCE, "--pairs", 40) == 0
        assert capsys.readouterr().out.splitlines()[2] == "10 of 40 pairs (25%) were sent on"
        assert run(stored, "--out", tmp_path / "2", "--labels", f"{source}|budget=x", *SENTENCE) == 2
        assert 'expected "cascade:SMALL|LARGE"' in capsys.readouterr().err
        assert not (tmp_path / "2").exists()

    def test_an_interrupt_keeps_what_was_labelled(self, stored, model, tmp_path, monkeypatch):
        blocks = iter([10])

        def answer(self, first, second):
            if not next(blocks, 0):
                raise KeyboardInterrupt
            return np.ones(len(first))

        monkeypatch.setattr(labelers.ModelLabeler, "__call__", answer)
        assert run(stored, "--out", tmp_path, "--labels", model, *SENTENCE, "--pairs", 25) == 130
        assert PreferenceBuffer.load(tmp_path).labels.tolist() == [1.0] * 10

    def test_the_pairs_go_to_the_model_in_blocks(self, stored, model, tmp_path, monkeypatch, capsys):
        sizes = []

        def answer(self, first, second):
            sizes.append(len(first))
            return np.where(first.returns > second.returns, 0.0, np.where(first.returns < second.returns, 1.0, np.nan))

        monkeypatch.setattr(labelers.ModelLabeler, "__call__", answer)
        assert run(stored, "--out", tmp_path, "--labels", model, *SENTENCE, "--pairs", 25) == 0
        assert sizes == [10, 10, 5]
        assert "return: 0.000 of the " in capsys.readouterr().out  # it is always wrong


class TestHuman:
    @pytest.mark.parametrize("way", [("--human",), ("--labels", "human")])
    def test_labels_of_a_person(self, stored, tmp_path, monkeypatch, way):
        person = Person(monkeypatch, ["left", "right", "equal", "skip"])
        assert run(stored, "--out", tmp_path, *way, *SENTENCE, "--pairs", 4, "--no-browser") == 0
        assert PreferenceBuffer.load(tmp_path).labels.tolist() == [1.0, 0.0, 0.5]
        assert person.printed[1].startswith("4 pairs: 1 first, 1 second, 1 equal, 1 skipped")
        assert person.printed[-1] == f"preferences: {tmp_path} (3 pairs)"

    def test_stop_keeps_what_was_labelled(self, stored, tmp_path, monkeypatch):
        Person(monkeypatch, ["left", "left", "stop"])
        assert run(stored, "--out", tmp_path, "--human", *SENTENCE, "--no-browser") == 0
        assert PreferenceBuffer.load(tmp_path).labels.tolist() == [1.0, 1.0]


class TestErrors:
    def error(self, capsys, *arguments):
        assert run(*arguments) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("vlp-gym: error: ")
        return shown.err.removeprefix("vlp-gym: error: ").rstrip("\n")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "expected who labels: --human, --labels scripted, or --labels with the name of a reward model"),
            (("--human", "--labels", "scripted"), "--human: expected no other --labels beside it, got scripted"),
            (("--human", "--pairs", "0"), "--pairs: expected at least 1, got 0"),
            (("--human", "--length", "0"), "--length: expected at least 1, got 0"),
            (("--human", "--newest", "-1"), "--newest: expected at least 1, got -1"),
            (
                ("--human", "--instruction", " "),
                'the instruction is empty; say what is to be done, such as "press the button"',
            ),
            (
                ("--labels", "vlp-compact"),
                'the instruction is empty; say what is to be done, such as "press the button"',
            ),
            (("--human", *SENTENCE, "--port", "70000"), "--port: expected 0 to 65535, got 70000"),
        ],
    )
    def test_options(self, capsys, stored, tmp_path, options, message):
        assert self.error(capsys, stored, "--out", tmp_path, *options) == message
        assert list(tmp_path.iterdir()) == []

    def test_no_such_folder(self, capsys, tmp_path):
        line = self.error(capsys, tmp_path / "no", "--out", tmp_path, "--labels", "scripted")
        assert line.startswith(
            f"{tmp_path / 'no'}: expected a folder with segments.json and segments.safetensors, but "
        )

    def test_no_frames(self, capsys, tmp_path):
        painted_store(keep_frames=False).save(tmp_path)
        line = self.error(capsys, tmp_path, "--out", tmp_path, "--human", *SENTENCE)
        assert line.endswith(
            "expected frames to show, found none; keep them where the agent acts: SegmentStore(frame_size=224)"
        )

    def test_no_such_model(self, capsys, stored, tmp_path):
        line = self.error(capsys, stored, "--out", tmp_path, "--labels", "vlp-compct", *SENTENCE)
        assert line.startswith("unknown reward model 'vlp-compct': ")

    def test_pairs_of_another_length_are_there(self, capsys, stored, tmp_path):
        """Said before anybody labels, not afterwards."""
        command = (stored, "--out", tmp_path, *SENTENCE)
        assert run(*command, "--labels", "scripted") == 0
        capsys.readouterr()
        line = self.error(capsys, *command, "--human", "--length", 5)
        assert line == "expected segments like those that are kept, (2, 8, 5), got (2, 5, 5)"

    def test_another_command_labels_into_the_folder(self, capsys, stored, tmp_path):
        command = [sys.executable, "-m", "vlp_gym.commands.main", "label", stored, "--out", tmp_path, "--human"]
        with subprocess.Popen(
            [*map(str, command), *SENTENCE, "--no-browser"], stdout=subprocess.PIPE, text=True
        ) as first:
            try:
                assert "pairs to label at http://127.0.0.1" in first.stdout.readline()
                line = self.error(capsys, stored, "--out", tmp_path, "--labels", "scripted")
            finally:
                first.kill()
        assert line == f"{tmp_path}: process {first.pid} is writing there; wait for its end, or choose another folder"
        assert run(stored, "--out", tmp_path, "--labels", "scripted") == 0  # a killed one holds nothing
        assert len(PreferenceBuffer.load(tmp_path)) == 100

    def test_damaged_preferences_are_not_written_over(self, capsys, stored, tmp_path):
        (tmp_path / "preferences.json").write_text("{")
        self.error(capsys, stored, "--out", tmp_path, "--labels", "scripted")
        assert (tmp_path / "preferences.json").read_text() == "{"
