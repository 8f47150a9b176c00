"""GVL's statistics of videos: against numbers by hand, and with endpoints that refuse, break and guess."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import AnswerError, CheckpointError, QueryError
from vlp_gym.evaluation.demonstrations import score_dataset, summarize
from vlp_gym.evaluation.score_log import Scored, ScoreLog
from vlp_gym.models.prompted.gvl import GVLModel
from vlp_gym.prompting import ChatClient


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
