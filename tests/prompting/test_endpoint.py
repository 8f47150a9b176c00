"""Endpoints that answer with anything, and a key that nobody may see."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chat_server import ChatServer
from vlp_gym.errors import QueryError
from vlp_gym.prompting import ChatClient

KEY = "sk-secret-" + "0123456789" * 4
GOOD = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer() as running:
        yield running


@pytest.fixture
def client(server: ChatServer) -> Iterator[ChatClient]:
    client = ChatClient("tiny", base_url=server.url, cache=None, max_retries=1, backoff_s=0.001)
    yield client
    client.close()


def refused(client: ChatClient, logprobs: bool = False) -> QueryError:
    with pytest.raises(QueryError) as caught:
        client.logprobs(["x"], ["True"]) if logprobs else client.ask(["x"], str)
    return caught.value


# --- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_in_no_part_of_a_traceback(server: ChatServer, client: ChatClient) -> None:
    server.faults.append(401)  # it quotes the key
    error = refused(client)
    assert str(error).startswith(f"{server.url} answered 401 (status 401 for ***); ")
    assert KEY not in "".join(traceback.format_exception(error))
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("status", [401, 503])
def test_a_long_message_is_not_cut_within_the_key(server: ChatServer, client: ChatClient, status: int) -> None:
    server.bodies = [{"error": {"message": "x" * 165 + f" key {KEY} is wrong"}}] * 2
    server.faults.extend([status] * 2)
    assert f"{'x' * 165} key *** is wrong)" in str(refused(client))


def test_a_key_with_a_line_end_is_taken_without_it(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    client = ChatClient("tiny", base_url=server.url, cache=None, max_retries=0)
    assert client.ask(["x"], str) == "Hello."
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    client.close()
    for key in (f"{KEY}\n{KEY}", f"{KEY}\N{BULLET}"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ValueError) as caught:
            ChatClient("tiny", base_url=server.url, cache=None)
        assert str(caught.value) == "OPENAI_API_KEY holds characters that no header may have; set it again"


# --- answers that are none -------------------------------------------------------------------------------------------

NONE = "got ChatCompletion without choices"
BODIES: list[tuple[Any, str]] = [
    ({"choices": {"a": 1}}, NONE),
    ({"choices": 5}, NONE),
    ({"choices": "text"}, NONE),
    ([1, 2], "got list without choices"),
    (None, "got NoneType without choices"),
    ({"choices": ["text"]}, "got a choice with no message"),
    ({"choices": [None]}, "got a choice with no message"),
    ({"choices": [{"message": "hi"}]}, "got a choice with 'str'"),
    ({"choices": [{"message": {"content": 5}}]}, "got a message whose content is int, not text"),
    ({"choices": [{"message": {"content": ["hi"]}}]}, "got a message whose content is list, not text"),
]


@pytest.mark.parametrize(("body", "reason"), BODIES)
def test_an_answer_that_is_none_is_asked_for_again(
    server: ChatServer, client: ChatClient, body: Any, reason: str
) -> None:
    server.bodies = [body]
    assert client.ask(["x"], str) == "Hello."
    assert client.stats()["retries"] == 1
    server.bodies = [body, body]
    assert str(refused(client)) == (
        f"{server.url} sent no chat completion ({reason}), 2 times; base_url must be an OpenAI-compatible endpoint, "
        "whose address usually ends in /v1"
    )


def test_an_answer_nested_too_deeply_is_none(server: ChatServer, client: ChatClient) -> None:
    server.bodies = [b"[" * 100_000]
    assert client.ask(["x"], str) == "Hello."
    assert client.stats()["retries"] == 1


@pytest.mark.parametrize("logprob", [None, "0.5", float("nan"), 5.0, [1]])
def test_a_log_probability_that_is_none_is_asked_for_again(
    server: ChatServer, client: ChatClient, logprob: Any
) -> None:
    listed = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "True", "logprob": logprob}]}]}
    server.bodies = [{"choices": [{**GOOD, "logprobs": listed}]}] * 2
    assert str(refused(client, logprobs=True)).startswith(
        f"{server.url} sent no chat completion (got the token 'True' with the log-probability {logprob}), 2 times; "
    )


@pytest.mark.parametrize("logprobs", ["text", 5, {"content": 5}, {"content": [5]}, {"content": [{"top_logprobs": 5}]}])
def test_log_probabilities_that_are_no_list_are_none(server: ChatServer, client: ChatClient, logprobs: Any) -> None:
    server.bodies = [{"choices": [{**GOOD, "logprobs": logprobs}]}]
    assert str(refused(client, logprobs=True)) == (
        f"{server.url} gives no log-probabilities of 'tiny'; take an endpoint that has top_logprobs, such as vLLM"
    )


@pytest.mark.parametrize(
    "usage", ["many", 5, {"prompt_tokens": "many"}, {"prompt_tokens": -5}, {"prompt_tokens": True}]
)
def test_only_whole_numbers_of_tokens_count(server: ChatServer, client: ChatClient, usage: Any) -> None:
    both = {**usage, "completion_tokens": 3} if isinstance(usage, dict) else usage
    server.bodies = [{"choices": [GOOD], "usage": both}]
    assert client.ask(["x"], str) == "Hello."
    counts = client.stats()
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (0, 3 if isinstance(usage, dict) else 0)


@pytest.mark.parametrize("when", ["nan", "-inf", "Mon, 01 Jan 99999 00:00:00 GMT"])
def test_a_retry_after_that_is_no_time_is_left_aside(server: ChatServer, client: ChatClient, when: str) -> None:
    server.faults.append((503, {"Retry-After": when}))
    assert client.ask(["x"], str) == "Hello."
    assert client.stats()["retries"] == 1
