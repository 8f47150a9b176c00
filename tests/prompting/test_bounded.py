"""Endpoints that never end, send too much, or lead elsewhere."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from tests.chat_server import ChatServer, completion
from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.bounded import MAX_BODY, _same_server

Handler = BaseHTTPRequestHandler
ENDLESS_S = 20.0  # how long "endless" answers really go on
QUICK_S = 5.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as running:
        yield running


def ask(server: ChatServer, **options: Any) -> str:
    settings = {"base_url": server.url, "cache": None, "backoff_s": 0.001, "max_retries": 0, **options}
    client = ChatClient("tiny", **settings)
    try:
        return client.ask(["x"], str)
    finally:
        client.close()


def refused(server: ChatServer, **options: Any) -> str:
    """The error's message after the address; it must come before an endless answer's end."""
    start = time.monotonic()
    with pytest.raises(QueryError) as caught:
        ask(server, **options)
    assert time.monotonic() - start < QUICK_S
    address, _, message = str(caught.value).partition(" ")
    assert address == server.url
    assert (type(caught.value) is QueryTimeout) == message.startswith("did not answer")
    return message


def endless(begin: bytes, piece: bytes, pause_s: float) -> Callable[[Handler], None]:
    """Answers with pieces for `ENDLESS_S`."""

    def answer(handler: Handler) -> None:
        end = time.monotonic() + ENDLESS_S
        handler.wfile.write(begin)
        while time.monotonic() < end:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause_s)

    return answer


STATUS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = STATUS + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (STATUS + b"Content-Length: 1000000\r\n\r\n", b" "),
        (CHUNKED, b"1\r\n \r\n"),
        (STATUS + b"\r\n", b" "),  # until the connection ends
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b""),
    ],
    ids=["body", "chunks", "until-closed", "headers", "continue", "silence"],
)
def test_a_request_ends_in_time_however_it_drips(server: ChatServer, begin: bytes, piece: bytes) -> None:
    server.faults.append(endless(begin, piece, 0.02))
    assert refused(server, timeout_s=0.3) == (
        "did not answer within 0.3 s; raise timeout_s for a slow model, or see whether the server is busy"
    )


def test_all_tries_together_end_in_time(server: ChatServer) -> None:
    drip = endless(CHUNKED, b"1\r\n \r\n", 0.02)
    server.faults.extend([drip] * 20)
    # Two whole tries fit into 0.5 s, and what is left for the third is about 0.1 s.
    message = refused(server, timeout_s=0.2, deadline_s=0.5, max_retries=19, backoff_s=0.0)
    assert 2 <= len(server.requests) <= 3
    assert f", {len(server.requests)} times; " in message
    server.faults.clear()
    server.faults.append((503, {"Retry-After": "30"}))  # a pause counts as well
    assert refused(server, deadline_s=20.0, max_retries=5) == "answered 503 (status 503 for none); try later"


LARGE = f"sent more than {MAX_BODY >> 20} MiB; lower max_tokens, or see whether base_url is a chat endpoint"


def whole(body: bytes, *headers: str) -> Callable[[Handler], None]:
    lines = "".join(f"{line}\r\n" for line in headers).encode()
    return lambda handler: handler.wfile.write(STATUS + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize(
    "answer",
    [
        endless(CHUNKED, b"10000\r\n" + b" " * 0x10000 + b"\r\n", 0.0),
        endless(STATUS + b"\r\n", b" " * 0x10000, 0.0),
        whole(gzip.compress(b" " * (3 << 30 >> 3)), "Content-Encoding: gzip"),
        whole(zlib.compress(b" " * (MAX_BODY + 1)), "Content-Encoding: deflate"),
        whole(gzip.compress(b"{}") + b" " * MAX_BODY, "Content-Encoding: gzip"),
    ],
    ids=["chunks", "until-closed", "bomb", "deflate", "behind-gzip"],
)
def test_an_answer_is_read_up_to_a_limit(server: ChatServer, answer: Callable[[Handler], None]) -> None:
    server.faults.append(answer)
    tracemalloc.start()
    try:
        assert refused(server) == LARGE
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BODY
    finally:
        tracemalloc.stop()


def body(size: int = 0) -> bytes:
    """A completion that says Hello, as JSON of at least `size` bytes."""
    question = {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}
    return json.dumps(completion(question, None)).encode().ljust(size)


@pytest.mark.parametrize(
    ("packed", "header"),
    [
        (body(), "X-None: 1"),
        (body(MAX_BODY), "Content-Encoding: identity"),
        (gzip.compress(body(MAX_BODY)), "Content-Encoding: GZip"),
        (zlib.compress(body()), "Content-Encoding: deflate"),
    ],
)
def test_answers_within_the_limit_are_read(server: ChatServer, packed: bytes, header: str) -> None:
    server.faults.append(whole(packed, header))
    assert ask(server) == "Hello."


@pytest.mark.parametrize(
    ("packed", "coding", "message"),
    [
        (
            gzip.compress(gzip.compress(b"{}")),
            "gzip, gzip",
            "packed its answer as 'gzip, gzip'; only gzip and deflate are read; see which proxy does",
        ),
        (b"{}", "br", "packed its answer as 'br'; only gzip and deflate are read; see which proxy does"),
        (b"{}", "gzip", "sent gzip that cannot be unpacked; see whether a proxy damages answers"),
    ],
)
def test_other_packing_is_refused(server: ChatServer, packed: bytes, coding: str, message: str) -> None:
    server.faults.append(whole(packed, f"Content-Encoding: {coding}"))
    assert refused(server) == message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_to_another_server(server: ChatServer, status: int) -> None:
    with ChatServer() as other:
        server.faults.append((status, {"Location": f"{other.url}/chat/completions?token=secret"}))
        assert refused(server) == (
            f"answered {status} with a redirect to another server, {other.url.removesuffix('v1')}; "
            "nothing was sent there; if you trust it, give its address as base_url"
        )
        assert other.requests == []
    server.faults.append((status, {"Location": server.url.replace("127.0.0.1", "localhost")}))
    assert "another server, http://localhost:" in refused(server)
    assert len(server.requests) == 2


def test_a_redirect_on_the_same_server_is_followed(server: ChatServer) -> None:
    server.faults.append((307, {"Location": "/other/path"}))
    assert ask(server) == "Hello."
    assert server.requests[0] == server.requests[1]
    server.faults.extend([(308, {"Location": f"{server.url}/again"})] * 10)
    assert refused(server) == "answered with more than 5 redirects; correct base_url"
    assert len(server.requests) == 2 + 6


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://a/x", "http://a:80/y", True),
        ("http://a/x", "https://a/x", True),
        ("http://a/x", "https://a:444/x", False),
        ("http://a:8000/x", "https://a/x", False),
        ("https://a/x", "http://a/x", False),
        ("https://a:443/x", "http://a:443/x", False),
        ("https://a/x", "https://b.a/x", False),
        ("https://a/x", "ftp://a/x", False),
    ],
)
def test_what_the_same_server_is(server: ChatServer, url: str, other: str, same: bool) -> None:
    client = ChatClient("tiny", base_url=server.url)
    address = type(client._client.base_url)
    assert _same_server(address(url), address(other)) is same
    client.close()


SCRIPT = """
import os, sys
from vlp_gym.prompting import ChatClient
client = ChatClient("tiny", base_url=sys.argv[1], cache=None)
assert client.ask(["x"], str) == "Hello."
child = os.fork()
assert client.ask(["x"], str) == "Hello."  # both at once
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
if sys.argv[2] == "close":
    client.close()
    client.close()
"""


@pytest.mark.parametrize("end", ["close", "leave"])
def test_a_forked_child_asks_on_connections_of_its_own(server: ChatServer, end: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SCRIPT, server.url, end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(server.requests) == 3
