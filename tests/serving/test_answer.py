"""Questions of several clients in common batches: each frame encoded once, and an error of one is not one of others."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.reward_server import EveryPart
from tests.tiny import awake_model
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.serving.answer import Answerer, Unknown
from vlp_gym.serving.rows import Rows
from vlp_gym.serving.wire import Ask, Sentence, digest_of
from vlp_gym.testing import PaintedModel

TEXT = Sentence(text="press the button", truncate=False)


def painted(*greens: int) -> list[torch.Tensor]:
    """Frames with the painted values green / 65536."""
    made = torch.zeros(len(greens), 8, 8, 3, dtype=torch.uint8)
    made[:, 0, 0, 1] = torch.tensor(greens, dtype=torch.uint8)
    return list(made)


def ask(frames: list[torch.Tensor], *, sent: bool = True, sentence: Sentence = TEXT, question: str = "score") -> Ask:
    """A question about one window of these frames."""
    named = {digest_of(frame): frame for frame in frames}
    places = {name: place for place, name in enumerate(named)}
    windows = torch.tensor([[places[digest_of(frame)] for frame in frames]], dtype=torch.int32)
    return Ask(
        question, list(named), named if sent else {}, windows,  # type: ignore[arg-type]
        mask=torch.ones(1, len(frames), dtype=torch.bool), sentences=[sentence], text=torch.zeros(1, dtype=torch.int32),
    )  # fmt: skip


def test_what_several_ask_is_encoded_once_and_answered_each():
    model = PaintedModel()
    answerer = Answerer(model, 1 << 20)
    answers = answerer.answer([ask(painted(1, 2)), ask(painted(2, 3)), ask(painted(1, 2, 3, 4)), ask(painted(9))])
    assert [answer["preference"].tolist() for answer in answers] == [[g / 65536] for g in (2, 3, 4, 9)]
    assert model.encoded == answerer.encoded == 5
    assert answerer.answer([ask(painted(3, 9), sent=False)])[0]["preference"].tolist() == [9 / 65536]
    assert model.encoded == 5


def test_frames_that_are_not_there_are_named():
    answerer = Answerer(PaintedModel(), 1 << 20)
    answerer.answer([ask(painted(1))])
    unknown, other = answerer.answer([ask(painted(1, 2), sent=False), ask(painted(1), sent=False)])
    assert isinstance(unknown, Unknown)
    assert unknown.digests == [digest_of(painted(2)[0])]
    assert other["preference"].tolist() == [1 / 65536]


def test_an_error_belongs_to_who_has_asked():
    bright = torch.full((8, 8, 3), 250, dtype=torch.uint8)
    long = Sentence(text="press the button that is red", truncate=False)
    answers = Answerer(EveryPart(), 1 << 20).answer(
        [ask(painted(1)), ask([bright]), ask(painted(2), sentence=long), ask(painted(3))]
    )
    assert [answers[number]["preference"].tolist() for number in (0, 3)] == [[1 / 65536], [3 / 65536]]
    assert isinstance(answers[1], QueryError)
    assert str(answers[1]) == "the reward model raised RuntimeError: too bright for me (a question of a client)"
    assert isinstance(answers[2], InstructionError)
    cut = Sentence(text=long.text, truncate=True)
    assert "preference" in Answerer(EveryPart(), 1 << 20).answer([ask(painted(2), sentence=cut)])[0]


def test_no_file_of_the_server_can_be_named():
    answer = Answerer(PaintedModel(), 1 << 20).answer(
        [ask(painted(1), sentence=Sentence(text="/a.PNG", truncate=False))]
    )
    assert str(answer[0]) == "'/a.PNG' looks like the path of a file, and a served model takes a sentence"


def test_a_cache_of_one_frame_answers_what_comes_whole():
    answerer = Answerer(PaintedModel(), 4)  # of four bytes, and a sentence takes them as well
    first, second = answerer.answer([ask(painted(1, 2, 3)), ask(painted(4, 1))])
    assert (first["preference"].tolist(), second["preference"].tolist()) == ([3 / 65536], [1 / 65536])
    assert isinstance(answerer.answer([ask(painted(1), sent=False)])[0], Unknown)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_windows_of_a_contextual_model_are_scored_as_by_itself(length):
    model = awake_model()
    guard, answerer = GuardedModel(model), Answerer(model, 1 << 20)
    generator = torch.Generator().manual_seed(length)
    videos = torch.randint(0, 256, (3, length, 40, 50, 3), dtype=torch.uint8, generator=generator)
    for _ in range(2):  # the second time from the cache
        answers = answerer.answer([ask(list(video)) for video in videos])
        tokens = guard.encode_frames(videos.flatten(0, 1), where="test").unflatten(0, (3, length))
        text = guard.encode_text(["press the button"] * 3, where="test")
        scores = guard.score(tokens, text, torch.ones(3, length, dtype=torch.bool), where="test")
        for name in ("preference", "progress", "relevance"):
            together = torch.cat([answer[name] for answer in answers])
            torch.testing.assert_close(together, getattr(scores, name), rtol=1e-5, atol=1e-6)


def test_the_least_recently_used_rows_go_first():
    rows = Rows(limit=24)
    for name in "abc":
        rows.put(name, torch.zeros(2))
    rows.get("a")
    rows.put("d", torch.zeros(2))
    rows.put("e", torch.zeros(100))  # never fits
    assert ["".join(name for name in "abcde" if name in rows), rows.bytes, len(rows)] == ["acd", 24, 3]
