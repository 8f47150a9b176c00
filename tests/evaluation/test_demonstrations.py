"""GVL's statistics of videos: against numbers by hand, and with endpoints that refuse, break and guess."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_model

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import AnswerError, CheckpointError, DatasetError, QueryError
from vlp_gym.evaluation import cross
from vlp_gym.evaluation.curation import dataset_ranking
from vlp_gym.evaluation.demonstrations import score_dataset, summarize
from vlp_gym.evaluation.examples import choose_examples, example_of
from vlp_gym.evaluation.goals import goals_for
from vlp_gym.evaluation.score_log import Scored, ScoreLog
from vlp_gym.models.prompted.gvl import GVLModel
from vlp_gym.models.vip import VIPModel
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.parse import Unparsed
from vlp_gym.prompting.success import parse_success


@pytest.fixture
def model(server):
    """A chat model that takes brightness for progress, and forgets its answers."""
    client = ChatClient("tiny", base_url=server.url, cache=None, backoff_s=0.001)
    yield GVLModel(client, frame_size=8)
    client.close()


def video(*levels, seed=0, success=True):
    """Flat grey frames of these levels, 0 to 100 % of white."""
    count = len(levels)
    frames = np.stack([np.full((8, 8, 3), round(2.55 * level), np.uint8) for level in levels])
    nothing, done = np.zeros(count, np.float32), np.full(count, success)
    numbers = np.arange(count), nothing, done, nothing[1:], np.zeros((count, 2, 3), np.float32)
    return Trajectory("push-v3", "expert", seed, "a", 1, False, frames, *numbers, sentences=("push",))


def scored(model, *videos, **options):
    return score_dataset(model, videos, progress_bar=False, **options)


def test_no_video_is_kept(model):
    def stream():
        for number in range(5):
            made = video(0, 10, 20, 30, seed=number)
            alive.append(weakref.ref(made))
            yield made
            del made
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 1  # the one before, until this one comes

    alive = []
    assert [row["seed"] for row in score_dataset(model, stream(), progress_bar=False)] == list(range(5))


def test_pictures_of_goals_are_read_only_for_a_model_that_takes_them(model):
    def stream():
        yield from (video(0, 10, 20), video(0, 40, 90, seed=1))

    goals = goals_for(VIPModel(resnet=18, dim=8), stream())
    assert (goals.keys(), goals["push"][0, 0, 0]) == ({"push"}, 51)  # how the first of them ends
    unread = stream()
    assert goals_for(model, unread) == {}
    assert len(list(unread)) == 2


def test_the_first_frame_is_no_merit(model):
    """It is at 0 % because the prompt says so: of 0, 80, 60, 40 only the three that were asked about count."""
    (row,) = scored(model, video(0, 80, 60, 40))
    assert row["value"] == pytest.approx([0, 0.8, 0.6, 0.4], abs=1e-3)
    assert (row["voc"], row["voc_by_position"]) == (pytest.approx(-1), pytest.approx(-1))
    assert len(row["weight"]) == 3
    assert row["refused"] is None


def test_who_guesses_has_no_correlation(model):
    """All orders of four frames, each once."""
    rows = scored(model, *(video(0, *levels) for levels in itertools.permutations((20, 40, 60, 80))))
    assert np.mean([row["voc"] for row in rows]) == pytest.approx(0, abs=1e-12)
    assert {row["detected"] for row in rows} == {True, False}


def test_ties_have_two_names(model):
    """Ranks 2, 2, 2, 4 against 1, 2, 3, 4: 3 / sqrt(3 * 5). By position, the equal ones are in order."""
    (row,) = scored(model, video(0, 20, 20, 20, 100))
    assert row["voc"] == pytest.approx(3 / 15**0.5)
    assert row["voc_by_position"] == pytest.approx(1)


@pytest.mark.parametrize(
    "faults", [["refuse"] * 3, ["say:I would rather not."] * 3, [(400, {"code": "content_filter"})]]
)
def test_a_refusal_counts_and_the_others_go_on(model, server, faults):
    scored(model, video(0, 10, 20, 30))
    server.requests.clear()
    server.faults.extend(faults)
    rows = scored(model, video(5, 10, 20, 30, success=False), video(0, 40, 50, 60))
    assert len(server.requests) == len(faults) + 1
    refused, answered = rows
    assert (refused["voc"], refused["voc_by_position"], refused["detected"]) == (-1, -1, False)
    assert (refused["value"], refused["weight"]) == ([], [])
    assert refused["refused"].startswith("the reward model raised AnswerError: ")
    assert answered["voc"] == pytest.approx(1)
    table = summarize(rows, 0.5)
    assert "| expert | 2 | 0.00 | 0.00 | 0.50 | 0.50 |" in table
    assert table.endswith("refused: 1 videos, counted with a VOC of -1")


def test_nothing_is_lost_when_the_endpoint_breaks(model, server, tmp_path):
    """The second run asks about what is missing, and ends in the same rows as a run without a break."""
    videos = [video(0, 30, 60, 90, seed=k, success=bool(k % 2)) for k in range(2)] + [
        video(k, 90, 60, 95, seed=k) for k in (3, 4)
    ]
    wanted = scored(model, *videos)
    server.faults.extend([None, 401])
    with pytest.raises(QueryError) as caught:
        scored(model, *videos, log=ScoreLog(tmp_path / "log", "tiny"))
    assert not isinstance(caught.value.__cause__, AnswerError)
    server.requests.clear()
    assert scored(model, *videos, log=ScoreLog(tmp_path / "log", "tiny")) == wanted
    assert len(server.requests) == 2  # the first two videos show the same
    assert scored(model, *videos, log=ScoreLog(tmp_path / "log", "tiny")) == wanted
    assert len(server.requests) == 2
    scored(model, videos[0], log=ScoreLog(tmp_path / "log", "another"))
    assert len(server.requests) == 3


def test_refusals_are_remembered_too(model, server, tmp_path):
    server.faults.extend(["refuse"] * 3)
    first = scored(model, video(0, 10, 20), log=ScoreLog(tmp_path / "log", "tiny"))
    assert scored(model, video(0, 10, 20), log=ScoreLog(tmp_path / "log", "tiny")) == first
    assert len(server.requests) == 3


def test_a_line_that_was_not_finished_is_dropped(tmp_path):
    path = tmp_path / "log"
    ScoreLog(path, "tiny").add(Scored(key="a", value=[0.0, 1.0], refused=None, novelty=None))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    again = ScoreLog(path, "tiny")
    assert list(again.known) == ["a"]
    again.add(Scored(key="b", value=[], refused="no", novelty=1.5))
    assert ScoreLog(path, "tiny").known["b"] == again.known["b"]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("line", ["\x00", "[]", '{"key": 1}', "[" * 100_000, '{"key": "a", "value": [NaN]}'])
def test_a_file_of_another_kind(tmp_path, line):
    path = tmp_path / "log"
    path.write_text(f"{line}\n")
    with pytest.raises(CheckpointError) as caught:
        ScoreLog(path, "tiny")
    assert str(caught.value).startswith(f"{path}, line 1: ")


def test_two_frames_have_no_order(model):
    with pytest.raises(QueryError) as caught:
        scored(model, video(0, 50))
    assert str(caught.value) == "task push-v3, expert, seed 0: expected a video of at least 3 frames, got 2"


def test_precision_and_recall_by_hand():
    """Of 3 detected 2 are successes, of 4 successes 2 are detected, of 6 answers 3 are right."""
    verdicts = [(True, True), (True, True), (True, False), (False, True), (False, True), (False, False)]
    rows = [
        {"tier": "a", "voc": float(detected), "voc_by_position": 0.5, "detected": detected, "success": success}
        | {"value": [0.0, float(detected)], "refused": None}
        for detected, success in verdicts
    ]
    assert (
        "success detection at VOC >= 0.5: accuracy 0.500 (0.667 by always saying the commoner answer), "
        "precision 0.667, recall 0.500, n = 6"
    ) in summarize(rows, 0.5)
    nothing = summarize([{**row, "detected": False} for row in rows], 0.5)
    assert "precision -, recall 0.000" in nothing
    assert json.dumps(rows)


class TestFrames:
    def test_as_many_as_asked_for(self, model, server):
        (row,) = scored(model, video(*range(0, 100, 2)), frames=30)
        assert len(row["value"]) == 30
        assert row["step"][0] == 0
        assert row["step"][-1] == 49
        with pytest.raises(ValueError, match=r"^expected at least 3 frames, got 2$"):
            scored(model, video(0, 1, 2), frames=2)


class TestSuccessVQA:
    def test_it_is_asked_beside_the_values(self, model, server):
        """Bright at the end is a yes; two of these three answers are right."""
        videos = [video(0, 20, 90), video(0, 30, 40, success=False), video(0, 90, 30)]
        rows = scored(model, *videos, ask="plain")
        assert [row["asked"] for row in rows] == [True, False, False]
        assert "success by asking: accuracy 0.667, precision 1.000, recall 0.500, n = 3, 0 answers could not" in (
            summarize(rows, 0.5)
        )
        question = server.requests[1]["messages"][0]["content"]
        assert [part["type"] for part in question].count("image_url") == 3
        assert question[-1]["text"].endswith("Reply with one line that holds only yes or no.")

    def test_reasoning_comes_first(self, model, server):
        (row,) = scored(model, video(0, 20, 90), ask="reasoning")
        assert row["asked"] is True
        assert "First reason step by step" in server.requests[1]["messages"][0]["content"][-1]["text"]

    def test_an_answer_that_cannot_be_read_is_none(self, model, server):
        server.faults.extend([None, *["say:Perhaps."] * 3])
        (row,) = scored(model, video(0, 20, 90), ask="plain")
        assert row["asked"] is None
        assert row["refused"] is None
        assert "success by asking" not in summarize([row], 0.5)

    def test_other_models_cannot_be_asked(self):
        with pytest.raises(ValueError, match=r"^expected a model that asks a chat model, such as gvl:MODEL, got S"):
            scored(tiny_model(), video(0, 1, 2), ask="plain")

    @pytest.mark.parametrize("answer", ["", "yes\nno or yes", "maybe", "yes\nI am sure"])
    def test_answers_without_one_word(self, answer):
        with pytest.raises(Unparsed, match=r"^the last line has neither yes nor no, or both$"):
            parse_success(answer)


class TestExamples:
    def videos(self):
        made = [replace(video(*range(0, 60, 10), seed=k), task=task) for k, task in enumerate("aabc")]
        return [*made, replace(video(0, 1, 2, success=False), task="a")]

    def test_progress_until_success(self):
        rollout = video(0, 10, 20, 30, 40, 50, 60)
        done = replace(rollout, success=np.arange(7) >= 4)
        frames, percentages = example_of(done, 3)
        assert percentages == [0.0, 50.0, 100.0]
        assert (frames == done.frames[[0, 2, 4]]).all()
        assert example_of(done, 30)[1] == [0.0, 25.0, 50.0, 75.0, 100.0]
        failed = replace(rollout, success=np.zeros(7, bool))
        with pytest.raises(DatasetError, match=r"expected a rollout that succeeds, as an example of progress$"):
            example_of(failed, 3)

    @pytest.mark.parametrize("which", ["same", "other", "any"])
    def test_of_which_task(self, which):
        shown = [replace(t, frames=np.full_like(t.frames, ord(t.task))) for t in self.videos()]
        shown = [replace(t, success=np.arange(len(t.frames)) >= 2) if t.success.any() else t for t in shown]
        found = choose_examples({"a": "do a", "b": "do b"}, shown, which, shots=1, frames=3)
        tasks = {said: {chr(frames[0, 0, 0, 0]) for frames, _ in own} for said, own in found.items()}
        assert list(tasks) == ["do a", "do b"]
        assert all(len(own) == 1 for own in found.values())
        if which == "same":
            assert tasks == {"do a": {"a"}, "do b": {"b"}}
        if which == "other":
            assert "a" not in tasks["do a"]
            assert "b" not in tasks["do b"]

    def test_too_few(self):
        with pytest.raises(DatasetError, match=r"^expected 3 successful rollouts of a as examples, found 2$"):
            choose_examples({"a": "do a"}, self.videos(), "same", shots=3, frames=3)


class TestCross:
    def test_the_matrix_by_hand(self, tmp_path):
        tasks = {"x": "do x", "y": "do y"}
        said = {("x", "do x"): [0.8, 0.6], ("x", "do y"): [0.1, 0.3], ("y", "do x"): [0.5], ("y", "do y"): [0.5]}
        rows = [{"task": t, "instruction": s, "voc": v} for (t, s), values in said.items() for v in values]
        matrix = cross.cross_matrix(rows, tasks)
        np.testing.assert_allclose(matrix, [[0.7, 0.2], [0.5, 0.5]])
        text = cross.markdown(matrix, list(tasks))
        assert "| x | 0.70 | 0.20 |" in text
        assert text.endswith("the right sentence has the highest VOC for 1 of 2 tasks")
        cross.plot_cross(matrix, list(tasks), tmp_path / "cross.png")
        assert (tmp_path / "cross.png").read_bytes().startswith(b"\x89PNG")


def test_the_ranking_begins_with_the_best():
    table = dataset_ranking({"bad": [-1.0, 0.0], "good": [0.9]})
    assert table.splitlines()[2:] == ["| good | 0.90 | 0.00 | 1 |", "| bad | -0.50 | 0.71 | 2 |"]
