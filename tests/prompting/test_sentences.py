"""Sentences that a chat model writes: what is read, what is dropped, when it is asked again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.chat_server import ChatServer
from vlp_gym.errors import AnswerError
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.parse import Unparsed
from vlp_gym.prompting.sentences import parse_sentences, write_sentences


def say(server: ChatServer, *answers: object) -> None:
    server.faults.extend(f"say:{answer if isinstance(answer, str) else json.dumps(answer)}" for answer in answers)


def test_what_is_dropped_and_asked_for_again(chat: ChatClient, server: ChatServer) -> None:
    say(
        server,
        ["Push the knob.", "press  the BUTTON.", "push the knob", "", "shut the door", "go " * 9, "  Hit the button "],
        ["hit the button", "Depress the button", "Press the knob", "Prod the button"],
    )
    found = write_sentences(
        chat, "button-press-v3", "press the button", count=4, taken=["Shut the door!"], most_words=8
    )
    assert found.sentences == ["Push the knob.", "Hit the button", "Depress the button", "Press the knob"]
    assert [why for _, why in found.dropped] == [
        "it is there already",
        "it is there already",
        'the instruction is empty; say what is to be done, such as "press the button"',
        "it is a sentence of another task",
        "9 words, at most 8 are taken",
        "it is there already",
        "more than were asked for",
    ]
    first, second = (request["messages"][0]["content"][0]["text"] for request in server.requests)
    assert "generating 4 new instructions" in first
    assert first.endswith('My instruction for button press task: "press the button"\nAnswer:')
    assert "generating 2 new instructions" in second
    assert 'write others: ["Push the knob.", "Hit the button"].' in second


def test_the_picture_is_shown(chat: ChatClient, server: ChatServer) -> None:
    say(server, ["shove it"])
    write_sentences(chat, "push-v3", "push it", count=1, picture=np.full((8, 8, 3), 9, np.uint8))
    assert [part["type"] for part in server.requests[0]["messages"][0]["content"]] == ["text", "image_url"]


def test_a_model_that_repeats_itself_is_asked_three_times(chat: ChatClient, server: ChatServer) -> None:
    say(server, *[["push it", "shove it"]] * 9)
    found = write_sentences(chat, "push-v3", "push it", count=5)
    assert found.sentences == ["shove it"]
    assert len(server.requests) <= 3


def test_an_answer_without_a_list(chat: ChatClient) -> None:
    with pytest.raises(AnswerError, match="because expected a Python list of sentences; it began with 'Hello"):
        write_sentences(chat, "push-v3", "push it")


@pytest.mark.parametrize(
    ("answer", "sentences"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("```python\n['a', \"b's\",]\n```", ["a", "b's"]),
        ('Here:\n1. push it\n2) shove it\n- "slide it"', ["push it", "shove it", "slide it"]),
    ],
)
def test_lists(answer: str, sentences: list[str]) -> None:
    assert parse_sentences(answer) == sentences


@pytest.mark.parametrize(
    "answer", ["", "no", "[]", "[1, 2]", "{'a': 1}", "['a', open('/etc/hosts')]", "[" * 50_000 + "]"]
)
def test_no_lists(answer: str) -> None:
    with pytest.raises(Unparsed, match=r"^expected a Python list of sentences$"):
        parse_sentences(answer)
