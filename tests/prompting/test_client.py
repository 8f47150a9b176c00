from __future__ import annotations

import base64
import io
import itertools
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chat_server import ChatServer
from vlp_gym.errors import MissingExtraError, QueryError, QueryTimeout
from vlp_gym.prompting import ChatClient, Unparsed, open_chat
from vlp_gym.prompting.cache import PromptCache, default_folder, question_key
from vlp_gym.prompting.client import RateLimit, candidate_logprob
from vlp_gym.prompting.content import Chat, png_bytes
from vlp_gym.prompting.failures import retry_after_s
from vlp_gym.prompting.workers import concurrently

KEY = "sk-secret-0123456789"
Make = Callable[..., ChatClient]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ChatServer() as running:
        yield running


@pytest.fixture
def make(server: ChatServer) -> Iterator[Make]:
    """Makes clients of the server that keep nothing and hardly wait."""
    made: list[ChatClient] = []

    def make_client(**options: Any) -> ChatClient:
        made.append(ChatClient("tiny", **{"base_url": server.url, "cache": None, "backoff_s": 0.001, **options}))
        return made[-1]

    yield make_client
    for client in made:
        client.close()


def picture(value: int = 0, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def number(answer: str) -> int:
    try:
        return int(answer)
    except ValueError:
        raise Unparsed(f"{answer!r} is no number") from None


# --- what is sent and what comes back --------------------------------------------------------------------------------


def test_text_and_pictures_travel_in_order(server: ChatServer, make: Make) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    client = make()
    assert client.ask(["look", noise, "well?"], str) == "Hello."
    assert isinstance(client, Chat)
    (body,) = server.requests
    assert (body["model"], body["temperature"]) == ("tiny", 0.0)
    (message,) = body["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text"]
    assert [message["content"][0]["text"], message["content"][2]["text"]] == ["look", "well?"]
    data = base64.b64decode(message["content"][1]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), noise)
    assert client.stats() == {
        "requests": 1,
        "retries": 0,
        "cached": 0,
        "unparsed": 0,
        "prompt_tokens": 300,
        "completion_tokens": 10,
    }


def test_options_go_along_and_none_leaves_them_out(server: ChatServer, make: Make) -> None:
    make(temperature=None).ask(["x"], str)
    make(temperature=0.5, max_tokens=7).ask(["x"], str)
    first, second = server.requests
    assert first.keys() == {"model", "messages"}
    assert (second["temperature"], second["max_tokens"]) == (0.5, 7)


def test_prices_make_dollars(make: Make) -> None:
    client = make(prompt_price=2.0, completion_price=8.0)
    client.ask(["a", "b"], str)
    assert client.stats()["dollars"] == pytest.approx((200 * 2.0 + 10 * 8.0) / 1e6)


def test_the_address_and_the_key_come_from_the_environment(
    server: ChatServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    make(base_url=None).ask(["x"], str)  # a server of one's own needs no key
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make(base_url=None).ask(["x"], str)
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer none", f"Bearer {KEY}"]


def test_without_a_key_and_an_address_there_is_nobody_to_ask(server: ChatServer) -> None:
    with pytest.raises(ValueError) as caught:
        ChatClient("tiny")
    assert str(caught.value) == (
        "no chat endpoint is known: set OPENAI_API_KEY for OpenAI's, or OPENAI_BASE_URL (or base_url=...) for another "
        "one"
    )


def test_without_openai_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError) as caught:
        ChatClient("tiny", base_url="http://127.0.0.1:1/v1")
    assert str(caught.value) == 'a chat endpoint needs the package openai: pip install "vlp_gym[prompt]"'


# --- an endpoint that misbehaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [408, 429, 500, 503, "drop", "garbage", "strange", "slow"])
def test_what_may_pass_is_tried_again_and_counted(server: ChatServer, make: Make, fault: Any) -> None:
    client = make(timeout_s=0.5 if fault == "slow" else 30.0)
    server.slow_s = 1.0
    server.faults.extend([fault, fault])
    before = random.getstate()
    assert client.ask(["x"], str) == "Hello."
    assert random.getstate() == before
    counts = client.stats()
    assert (counts["requests"], counts["retries"], len(server.requests)) == (3, 2, 3)


@pytest.mark.parametrize("header", ["Retry-After", "Retry-After-Ms"])
def test_the_server_says_how_long_to_wait(server: ChatServer, make: Make, header: str) -> None:
    client = make(backoff_s=30.0)  # a client that did not listen would wait this long
    server.faults.append((429, {header: 60 if header.endswith("Ms") else 0.06}))
    client.ask(["x"], str)
    assert 0.06 <= server.times[1] - server.times[0] < 5.0


def test_a_pause_grows_and_is_jittered(make: Make) -> None:
    client = make(backoff_s=0.5)
    pauses = [[client._wait_s(attempt, None) for _ in range(20)] for attempt in range(6)]
    for attempt, full in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, 8.0]):
        assert all(0.75 * full <= pause <= full for pause in pauses[attempt])
        assert len(set(pauses[attempt])) > 1


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert retry_after_s({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}) > 1e9
    for nonsense in ("soon", "nan", "inf", "Mon, 01 Jan 99999 00:00:00 GMT"):
        assert retry_after_s({"retry-after": nonsense}) is None
    assert retry_after_s({"retry-after-ms": "nan", "retry-after": "2"}) == 2.0
    assert retry_after_s({}) is None


FAILURES = [
    (
        "slow",
        "did not answer within 0.05 s, 2 times; raise timeout_s for a slow model, or see whether the server is busy",
    ),
    ("garbage", None),
    (
        "strange",
        "sent no chat completion (got ChatCompletion without choices), 2 times; base_url must be an OpenAI-compatible "
        "endpoint, whose address usually ends in /v1",
    ),
    (
        429,
        "answered 429 (status 429 for ***), 2 times; lower requests_per_minute or max_concurrency, or try later",
    ),
    (500, "answered 500 (status 500 for ***), 2 times; try later"),
    (401, "answered 401 (status 401 for ***); set OPENAI_API_KEY to a key that may use 'tiny'"),
    (404, "answered 404 (status 404 for ***); see whether it has the model 'tiny', and whether base_url ends in /v1"),
    (400, "answered 400 (status 400 for ***); the endpoint does not take such a request for 'tiny'"),
    ((429, {"code": "insufficient_quota"}), "answered 429 (status 429 for ***); the account has no credit left"),
    (
        (503, {"Retry-After": "3600"}),
        "answered 503 (status 503 for ***); try later",
    ),
]


@pytest.mark.parametrize(("fault", "message"), FAILURES)
def test_what_stays_wrong_is_an_error_that_says_what_to_do(
    server: ChatServer, make: Make, monkeypatch: pytest.MonkeyPatch, fault: Any, message: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    client = make(timeout_s=0.05 if fault == "slow" else 5.0, max_retries=1)
    server.faults.extend([fault, (fault[0], dict(fault[1])) if isinstance(fault, tuple) else fault])
    with pytest.raises(QueryError) as caught:
        client.ask(["x"], str)
    if message is None:  # the words of Python's JSON reader
        assert str(caught.value).startswith(f"{server.url} sent no chat completion (")
    else:
        assert str(caught.value) == f"{server.url} {message}"
    assert (type(caught.value) is QueryTimeout) == (fault == "slow")
    assert KEY not in str(caught.value)
    assert client.stats()["requests"] == (2 if "2 times" in str(caught.value) else 1)


def test_a_server_that_is_not_there(make: Make) -> None:
    client = make(base_url="http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(QueryError) as caught:
        client.ask(["x"], str)
    assert str(caught.value).startswith("http://127.0.0.1:9/v1 could not be reached (")
    assert str(caught.value).endswith("), 2 times; start the server, or correct base_url")


# --- answers that cannot be read -------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_read_is_asked_again_with_the_reason(server: ChatServer, make: Make) -> None:
    client = make()
    server.faults.extend(["say:one", "refuse", "say:3"])
    assert client.ask(["how many?"], number) == 3
    counts = client.stats()
    assert (counts["requests"], counts["unparsed"], counts["retries"]) == (3, 2, 0)
    asked = [[part["text"] for part in body["messages"][0]["content"]] for body in server.requests]
    assert asked == [
        ["how many?"],
        [
            "how many?",
            "Attempt 2: the answer could not be read, because 'one' is no number. "
            "Keep exactly to the format asked for.",
        ],
        [
            "how many?",
            "Attempt 3: the answer could not be read, because '' is no number. Keep exactly to the format asked for.",
        ],
    ]


def test_no_answer_that_can_be_read_is_an_error(server: ChatServer, make: Make, tmp_path: Path) -> None:
    client = make(attempts=2, cache=tmp_path)
    for _ in range(2):  # such answers are not kept: the question is asked anew
        server.faults.extend(["say:one", "say:two"])
        with pytest.raises(QueryError) as caught:
            client.ask(["how many?"], number)
        assert str(caught.value) == (
            "tiny was asked 2 times, and the answer could not be read, because 'two' is no number; it began with 'two'"
            ". Take a model that follows formats better, or give more attempts"
        )
    assert client.stats()["unparsed"] == 4
    assert not list(tmp_path.rglob("*.json"))


def test_an_answer_without_end_is_not_parsed(server: ChatServer, make: Make) -> None:
    server.faults.append("say:" + "7" * 100_001)
    with pytest.raises(QueryError, match="it has 100001 characters, at most 100000 are read"):
        make(attempts=1).ask(["how many?"], number)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_kept_answer_needs_no_request(server: ChatServer, make: Make, tmp_path: Path) -> None:
    question = ["look", picture(7)]
    server.faults.append("say:5")
    assert make(cache=tmp_path).ask(question, number) == 5
    other = make(cache=tmp_path, base_url=f"{server.url}/other")  # the address is no part of the question
    assert other.ask(question, number) == 5
    assert len(server.requests) == 1
    assert other.stats() == {name: int(name == "cached") for name in other.stats()}


def test_another_question_is_another_file(server: ChatServer, make: Make, tmp_path: Path) -> None:
    client = make(cache=tmp_path)
    questions = [["a"], ["b"], [picture(1)], [picture(2)], [picture(1, (6, 4))], ["a", picture(1)], [picture(1), "a"]]
    for question in questions:
        client.ask(question, str)
    ChatClient("tinier", base_url=server.url, cache=tmp_path).ask(["a"], str)
    make(cache=tmp_path, temperature=1.0).ask(["a"], str)
    make(cache=tmp_path, max_tokens=3).ask(["a"], str)
    assert len(list(tmp_path.rglob("*.json"))) == len(server.requests) == len(questions) + 3


def test_nothing_secret_is_written(server: ChatServer, make: Make, tmp_path: Path, monkeypatch, caplog, capfd) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("INFO")
    make(cache=tmp_path).ask(["x", picture()], str)
    (path,) = tmp_path.rglob("*.json")
    assert set(json.loads(path.read_text())) == {"model", "key", "answer", "sha256"}
    written = path.read_text() + caplog.text + "".join(capfd.readouterr())
    assert KEY not in written
    assert server.url not in path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b'"5"', b'"6"'),
        lambda data: b"[1, 2]",
        lambda data: b"\xff\xfe",
        lambda data: data.replace(b'"5"', b"5"),
        lambda data: b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_replaced(server: ChatServer, make: Make, tmp_path: Path, damage) -> None:
    server.faults.extend(["say:5", "say:5"])
    make(cache=tmp_path).ask(["x"], number)
    (path,) = tmp_path.rglob("*.json")
    intact = path.read_bytes()
    assert damage(intact) != intact
    path.write_bytes(damage(intact))
    assert make(cache=tmp_path).ask(["x"], number) == 5
    assert len(server.requests) == 2
    assert path.read_bytes() == intact


def test_a_kept_answer_that_is_read_otherwise_today_is_asked_for_again(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    client = make(cache=tmp_path)
    assert client.ask(["x"], str) == "Hello."
    server.faults.append("say:4")
    assert client.ask(["x"], number) == 4
    assert client.ask(["x"], number) == 4
    assert (len(server.requests), client.stats()["unparsed"]) == (2, 0)


def test_a_folder_that_cannot_be_written_costs_one_warning(server: ChatServer, make: Make, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    client = make(cache=blocked)
    with pytest.warns(UserWarning, match="answers cannot be kept") as caught:
        assert client.ask(["x"], str) == "Hello."
    assert [str(warning.message) for warning in caught] == [
        f"{blocked}: answers cannot be kept (Not a directory), and every question will be asked again; "
        "give another folder as cache"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.ask(["y"], str)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLP_GYM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == PromptCache().folder == tmp_path / ".cache/vlp_gym/prompts"
    monkeypatch.setenv("VLP_GYM_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine/prompts"
    assert PromptCache(None).folder is None


def test_the_key_depends_on_pixels_not_on_their_layout() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    flipped = noise[::-1]
    assert question_key("m", {}, [flipped]) == question_key("m", {}, [flipped.copy()])
    assert question_key("m", {}, [flipped]) != question_key("m", {}, [noise])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(flipped)))), flipped)


# --- many at once ----------------------------------------------------------------------------------------------------


def test_equal_questions_at_once_are_asked_once(server: ChatServer, make: Make, tmp_path: Path) -> None:
    server.delay_s = 0.02
    client = make(cache=tmp_path)
    answers = concurrently(lambda text: client.ask([text], str), ["same"] * 6, 6)
    assert answers == ["Hello."] * 6
    assert (len(server.requests), client.stats()["cached"]) == (1, 5)


def test_questions_overlap_up_to_the_limit(server: ChatServer, make: Make) -> None:
    server.delay_s = 0.03
    client = make()
    concurrently(lambda text: client.ask([text], str), "abcdef", 3)
    assert server.most_at_once == 3
    assert client.stats()["requests"] == 6


def test_requests_keep_their_distance() -> None:
    now, slept = itertools.count(100.0, 0.1), []
    limit = RateLimit(120.0, clock=lambda: next(now), sleep=slept.append)
    for _ in range(4):
        limit.wait()
    # Turns at 100, 100.5, 101, 101.5 by a clock that reads 100, 100.1, 100.2, 100.3; the first needs no sleep.
    assert slept == pytest.approx([0.4, 0.8, 1.2])
    RateLimit(None, sleep=slept.append).wait()
    assert len(slept) == 3


def test_a_rate_limit_holds_for_all_threads(server: ChatServer, make: Make) -> None:
    client = make(requests_per_minute=1500)  # 40 ms
    started = time.monotonic()
    concurrently(lambda text: client.ask([text], str), "abcdefghij", 10)
    assert max(server.times) - started >= 9 * 0.04


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_the_probability_of_an_answer(server: ChatServer, make: Make, tmp_path: Path) -> None:
    client = make(cache=tmp_path)
    question = [picture(10), picture(51), "Done?"]
    expected = [math.log(0.2), math.log(0.9 * 0.8)]  # the server's: 51 / 255 for "True", 0.9 of the rest for "False"
    assert client.logprobs(question, ["True", "False"]) == pytest.approx(expected)
    assert client.logprobs(question, ["True", "False"]) == pytest.approx(expected)
    assert client.logprobs(question, ["True"]) == pytest.approx(expected[:1])
    assert len(server.requests) == 2
    body = server.requests[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


def test_a_candidate_that_is_not_listed_gets_a_bound() -> None:
    top = [("yes", math.log(0.5)), ("no", math.log(0.3))]
    assert candidate_logprob(top, "True") == pytest.approx(math.log(0.2))  # what 0.5 and 0.3 leave
    top.append(("maybe", math.log(0.15)))
    assert candidate_logprob(top, "True") == pytest.approx(math.log(0.05))
    assert candidate_logprob([("yes", math.log(0.1))], "True") == pytest.approx(math.log(0.1))  # the least listed
    assert candidate_logprob([("True", 1e-9)], "True") == 0.0
    assert candidate_logprob([("yes", 0.0), ("no", -30.0)], "True") == -30.0


def test_an_endpoint_without_log_probabilities(server: ChatServer, make: Make) -> None:
    server.faults.append("no-logprobs")
    with pytest.raises(QueryError) as caught:
        make().logprobs([picture()], ["True"])
    assert str(caught.value) == (
        f"{server.url} gives no log-probabilities of 'tiny'; take an endpoint that has top_logprobs, such as vLLM"
    )


def test_a_chat_model_by_name(server: ChatServer, tmp_path: Path) -> None:
    spec = f"org/model:7b?base_url={server.url}&cache={tmp_path}&temperature=none&attempts=2&window=4&max_tokens=9"
    chat, own = open_chat(spec, {"window": int, "frame_size": int})
    assert isinstance(chat, ChatClient)
    assert (chat.name, chat.base_url, own) == ("org/model:7b", server.url, {"window": 4})
    chat.ask(["x"], str)
    (body,) = server.requests
    assert {name: body.get(name) for name in ("model", "temperature", "max_tokens")} == {
        "model": "org/model:7b",
        "temperature": None,
        "max_tokens": 9,
    }
    assert list(tmp_path.rglob("*.json"))
    chat.close()


def test_a_name_with_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        open_chat("m?colour=red", {"window": int})
    assert str(caught.value) == (
        "'m?colour=red': expected options of ['attempts', 'base_url', 'cache', 'completion_price', 'deadline_s', "
        "'max_retries', 'max_tokens', 'prompt_price', 'requests_per_minute', 'temperature', "
        "'timeout_s', 'window'], got 'colour'"
    )
    with pytest.raises(ValueError) as caught:
        open_chat("m?attempts=many")
    assert str(caught.value) == (
        "'m?attempts=many': attempts cannot be 'many' (invalid literal for int() with base 10: 'many')"
    )
    with pytest.raises(ValueError) as caught:
        open_chat("?cache=none")
    assert str(caught.value) == 'expected "MODEL" or "local/ORG/NAME", got \'?cache=none\''


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"timeout_s": 0.0}, "timeout_s must be finite and greater than 0, got 0.0"),
        ({"timeout_s": math.nan}, "timeout_s must be finite and greater than 0, got nan"),
        ({"timeout_s": math.inf}, "timeout_s must be finite and greater than 0, got inf"),
        ({"deadline_s": 0.0}, "deadline_s must be finite and greater than 0, got 0.0"),
        ({"requests_per_minute": 0.0}, "requests_per_minute must be finite and greater than 0, got 0.0"),
        ({"requests_per_minute": math.nan}, "requests_per_minute must be finite and greater than 0, got nan"),
        ({"temperature": math.nan}, "temperature must be finite and at least 0, got nan"),
        ({"temperature": -0.1}, "temperature must be finite and at least 0, got -0.1"),
        ({"max_tokens": -3}, "max_tokens must be finite and at least 1, got -3"),
        ({"max_tokens": 0}, "max_tokens must be finite and at least 1, got 0"),
        ({"max_retries": -1}, "max_retries must be finite and at least 0, got -1"),
        ({"backoff_s": math.nan}, "backoff_s must be finite and at least 0, got nan"),
        ({"prompt_price": -1.0}, "prompt_price must be finite and at least 0, got -1.0"),
        ({"completion_price": math.inf}, "completion_price must be finite and at least 0, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**options)
    assert str(caught.value) == message
