"""Answers in JSON by a schema, from endpoints that take one, refuse it, ignore it, or lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.chat_server import ChatServer
from vlp_gym.errors import QueryError
from vlp_gym.models.prompted.gvl import GVLModel
from vlp_gym.models.prompted.rl_vlm_f import RLVLMFModel
from vlp_gym.prompting import ChatClient, Unparsed
from vlp_gym.prompting.asking import MOST_UNREAD
from vlp_gym.prompting.parse import DESCRIPTION, PERCENTAGE, parse_choice, parse_percentages, percentages_schema

SENTENCE = "open the drawer"


@pytest.fixture
def model(chat: ChatClient) -> GVLModel:
    return GVLModel(chat, frame_size=8)


def video(*levels: int) -> np.ndarray:
    """Flat grey frames of these levels."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def right(model: GVLModel, *levels: int) -> None:
    """Values must be the brightness of the pictures, as the server sees them."""
    expected = [0.0, *(level / 255 for level in levels[1:])]
    np.testing.assert_allclose(model.values(video(*levels), SENTENCE), expected, atol=1e-5)


def with_schema(server: ChatServer) -> list[bool]:
    return ["response_format" in body for body in server.requests]


def test_an_endpoint_decodes_by_the_schema(model: GVLModel, server: ChatServer) -> None:
    right(model, 0, 200, 100)
    (body,) = server.requests
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == percentages_schema(2)
    assert model.chat.stats()["unparsed"] == 0


@pytest.mark.parametrize("status", [400, 422, 501])
def test_an_endpoint_that_refuses_is_asked_without_and_that_is_remembered(
    model: GVLModel, server: ChatServer, status: int
) -> None:
    server.schemas = status
    right(model, 0, 200, 100)
    right(model, 0, 10, 100)
    assert with_schema(server) == [True, False, False]
    assert model.chat.stats()["unparsed"] == 0
    assert [len(body["messages"][0]["content"]) for body in server.requests] == [10, 9, 9]  # no word about JSON


def test_a_question_that_is_refused_says_nothing_about_the_schema(model: GVLModel, server: ChatServer) -> None:
    server.faults.extend([400, 400])
    with pytest.raises(QueryError) as caught:
        model.values(video(0, 9), SENTENCE)
    assert str(caught.value) == (
        f"{server.url} answered 400 (status 400 for none); the endpoint does not take such a request for 'tiny'"
    )
    right(model, 0, 200)
    assert with_schema(server) == [True, False, True]


@pytest.mark.parametrize("fault", [401, 404])
def test_other_failures_are_no_refusal(model: GVLModel, server: ChatServer, fault: int) -> None:
    server.faults.append(fault)
    with pytest.raises(QueryError, match=f"answered {fault}"):
        model.values(video(0, 9), SENTENCE)
    assert with_schema(server) == [True]


def test_one_that_fails_for_a_while_keeps_the_schema(model: GVLModel, server: ChatServer) -> None:
    server.faults.extend([503, "drop", 500])
    right(model, 0, 200)
    assert with_schema(server) == [True] * 4


def test_one_that_ignores_the_schema_is_read_as_text(model: GVLModel, server: ChatServer) -> None:
    server.schemas = "ignore"
    right(model, 0, 200, 100)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "lie",
    [
        "say:{}",
        "say:" + "{" * 50_000,
        'say:{"Frame 1": {"Task Completion Percentages": 40',
        'say:{"Frame 1": {"Task Completion Percentages": 400}}',
        "refuse",
    ],
)
def test_one_that_lies_is_asked_for_text_and_soon_for_nothing_else(
    model: GVLModel, server: ChatServer, lie: str
) -> None:
    server.schemas = lie
    for level in range(1, MOST_UNREAD + 3):
        right(model, 0, level)
    assert with_schema(server) == [True, False] * MOST_UNREAD + [False, False]
    assert model.chat.stats()["unparsed"] == MOST_UNREAD


def test_one_lie_now_and_then_is_forgiven(model: GVLModel, server: ChatServer) -> None:
    for level in range(1, 6):
        server.faults.append("refuse")
        right(model, 0, level)
        right(model, 0, level, 100)
    assert with_schema(server) == [True, False, True] * 5


def test_a_slow_endpoint_keeps_the_order_of_the_rows(chat: ChatClient, server: ChatServer) -> None:
    """Several are asked at a time; the first to be asked is the last to answer."""
    server.schemas = 400
    server.slow_s = 0.3
    server.faults.append("slow")
    model = RLVLMFModel(chat, frame_size=8, max_concurrency=4)
    levels = [10, 90, 20, 200, 50, 120]
    a, b = (model.encode_frames(torch.from_numpy(video(*side)))[:, None] for side in (levels, [60] * 6))
    expected = [float(level > 60) for level in levels]
    assert model.prefer(a, b, model.encode_text([SENTENCE] * 6)).tolist() == expected
    assert 2 <= server.most_at_once <= 4
    assert 1 <= sum(with_schema(server)) <= 4  # those that were asked before one knew


def test_a_choice_is_held_to_its_three_answers(chat: ChatClient, server: ChatServer) -> None:
    model = RLVLMFModel(chat, frame_size=8)
    a, b = (model.encode_frames(torch.from_numpy(video(level)))[:, None] for level in (10, 200))
    assert model.prefer(a, b, model.encode_text([SENTENCE])).tolist() == [0.0]
    assert with_schema(server) == [False, True]  # the description is free


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_what_is_equal_is_sent_as_equal_bytes_and_first(server: ChatServer) -> None:
    """Servers keep what they made of a prefix, and of a picture."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    example = (frames[6:], [0.0, 50.0, 100.0])
    for _ in range(2):  # a new client, as after a restart
        client = ChatClient("tiny", base_url=server.url, cache=None)
        model = GVLModel(client, examples=[example], frame_size=8)
        tokens = torch.cat([model.encode_frames(torch.from_numpy(part)) for part in (frames[:1], frames[1:6])])
        for last in (3, 5, 6):
            model.score(tokens[None, :last], model.encode_text([SENTENCE]), torch.ones(1, last, dtype=torch.bool))
        client.close()
    asked = [body["messages"][0]["content"] for body in server.requests]
    assert asked[:3] == asked[3:]
    urls = [[part["image_url"]["url"] for part in content if part["type"] == "image_url"] for content in asked]
    seen = {url for shown in urls for url in shown}
    assert len(seen) == 9  # each frame is one string of bytes, wherever and whenever it is shown
    common = asked[0].index({"type": "text", "text": "Frame 1:"})
    assert common == 1 + 9 + 4  # task, three examples of three parts, first frame, format
    assert all(content[:common] == asked[0][:common] for content in asked)


def test_a_second_attempt_has_the_first_one_as_its_prefix(model: GVLModel, server: ChatServer) -> None:
    server.faults.extend(["refuse", "refuse"])
    right(model, 0, 200)
    first, second, third = (body["messages"][0]["content"] for body in server.requests)
    assert first[:-1] == second[:-1] == third[:-1]


# --- reading JSON ----------------------------------------------------------------------------------------------------


def rated(*values: Any) -> str:
    frames = enumerate(values, start=1)
    return json.dumps({f"Frame {number}": {DESCRIPTION: "open", PERCENTAGE: value} for number, value in frames})


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.booleans())
def test_percentages_in_json(values: list[float], fenced: bool) -> None:
    answer = f"```json\n{rated(*values)}\n```" if fenced else rated(*values)
    assert parse_percentages(answer, len(values)) == values


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (rated(5), "expected Frame 1 to Frame 2 in the JSON, each once; wrong are ['Frame 2']"),
        (rated(5, 6, 7), "expected Frame 1 to Frame 2 in the JSON, each once; wrong are ['Frame 3']"),
        (rated(5, 101), "Frame 2 has the percentage 101, expected a number from 0 to 100"),
        (rated(5, float("nan")), "Frame 2 has the percentage nan, expected a number from 0 to 100"),
        (rated("5", 6), "Frame 1 has the percentage '5', expected a number from 0 to 100"),
        (rated(True, 6), "Frame 1 has the percentage True, expected a number from 0 to 100"),
        ('{"Frame 1": 5, "Frame 2": 6}', "Frame 1 has the percentage None, expected a number from 0 to 100"),
        ('{"Frame 1": 5, "Frame 1": 6}', "it begins as JSON, but is none (a name comes twice)"),
    ],
)
def test_percentages_that_cannot_be_read(answer: str, reason: str) -> None:
    with pytest.raises(Unparsed) as caught:
        parse_percentages(answer, 2)
    assert str(caught.value) == reason


def test_choices_in_json() -> None:
    assert [parse_choice(json.dumps({"answer": choice})) for choice in (0, 1, -1)] == [0, 1, -1]
    for wrong in (2, 0.0, True, "0", None):
        with pytest.raises(Unparsed) as caught:
            parse_choice(json.dumps({"answer": wrong}))
        assert str(caught.value) == f"its answer is {wrong!r}, expected 0, 1 or -1"
