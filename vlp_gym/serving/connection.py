"""The client's side of HTTP: connections that are kept, requests that are repeated until the server is back.

A question has one answer, whenever and however often it is asked: so a request whose answer was lost is sent again, and
no reward can be paid twice. An answer belongs to the request whose number it carries. The standard library suffices,
so that clients need no extra.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import ssl
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.serving.wire import REQUEST_HEADER, SESSION_HEADER, TOKEN_VARIABLE

logger = logging.getLogger("vlp_gym")

MAX_ANSWER = 32 << 20  # bytes
PASSING = (429, 502, 503, 504)
PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
CONNECT_S = 5.0


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    body: bytes


class _Http(HTTPConnection):
    """Closes itself when nobody has it any more, such as a thread that has ended."""

    def __del__(self) -> None:
        self.close()


class _Https(_Http, HTTPSConnection):
    """The same, encrypted."""


class _Strange(Exception):
    """The answer is not one to this request."""


class Connection:
    """Requests to one server, from any thread; each thread has a connection of its own, which is kept.

    Args:
        address: "http://HOST:PORT" or "https://HOST:PORT", and a path before the server's own if a proxy needs one.
        token: of the server, or None. It is sent to this server only, and never shown.
        patience_s: how long to try again when there is no server, or it is busy.
        timeout_s: how long one answer may take.

    Raises:
        ValueError: the address is none, or holds a password; the token cannot be sent.
    """

    def __init__(self, address: str, token: str | None, patience_s: float, timeout_s: float) -> None:
        parts = urlsplit(address)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:  # the port is no number
            raise ValueError(f"expected the model's address as http://HOST:PORT, got {address!r} ({error})") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"an address may be shown and must hold no secret; set {TOKEN_VARIABLE} to the token")
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise ValueError(f"expected the model's address as http://HOST:PORT, got {address!r}")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError(f"{TOKEN_VARIABLE} holds characters that no header may have; set it again")
        self.address = address.rstrip("/")
        self.patience_s, self.timeout_s = patience_s, timeout_s
        self.retries = 0
        self._secure, self._path = parts.scheme == "https", parts.path.rstrip("/")
        self._token = token
        self._session = uuid.uuid4().hex  # where there are several servers, one of them has this client's frames
        self._random = random.Random()  # not the global generator: a retry must not change the agent's draws
        self._kept = threading.local()

    def ask(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """The server's answer: to GET without a body, to POST with one.

        Raises:
            QueryError: there is none within `patience_s`.
            QueryTimeout: one takes longer than `timeout_s`.
        """
        since = time.monotonic()
        for attempt in itertools.count():
            try:
                reply = self._exchange(path, body, dict(headers or {}))
                if reply.status not in PASSING:
                    return reply
                failure = f"answers {reply.status}"
            except TimeoutError as error:
                raise QueryTimeout(f"the reward server at {self.address} does not answer in time ({error})") from None
            except ssl.SSLCertVerificationError as error:
                raise QueryError(f"the reward server at {self.address} is not who it says ({error})") from None
            except (OSError, HTTPException, _Strange) as error:
                failure = f"cannot be asked ({type(error).__name__}: {error})"
            waited = time.monotonic() - since
            pause = min(PAUSE_S * 2 ** min(attempt, 10), MAX_PAUSE_S) * self._random.uniform(0.5, 1.0)
            if waited + pause > self.patience_s:
                raise QueryError(
                    f"the reward server at {self.address} {failure}, {attempt + 1} times in {waited:.1f} s; is it "
                    "running (vlp-gym serve MODEL), and the address right?"
                )
            if attempt == 3:
                logger.warning(
                    "the reward server at %s %s; trying again for up to %g s", self.address, failure, self.patience_s
                )
            self.retries += 1
            time.sleep(pause)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close this thread's connection; the next request opens another."""
        connection = getattr(self._kept, "connection", None)
        if connection is not None:
            connection.close()
            self._kept.connection = None

    def _exchange(self, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        """One request and its answer, on a connection that is closed unless it has come whole."""
        deadline = time.monotonic() + self.timeout_s
        number = uuid.uuid4().hex
        headers |= {REQUEST_HEADER: number, SESSION_HEADER: self._session, "Accept-Encoding": "identity"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._open()
        whole = False
        try:
            connection.request("GET" if body is None else "POST", self._path + path, body, headers)
            response = connection.getresponse()
            content = self._read(response, deadline)
            whole = True
        finally:
            if not whole:  # also after Ctrl-C: a late answer must not be taken for that of the next request
                self.close()
        if response.will_close:
            self.close()
        if response.status == 200 and body is not None and response.headers.get(REQUEST_HEADER) != number:
            self.close()
            raise _Strange("the answer carries the number of another request")
        return Reply(response.status, content)

    def _read(self, response: Any, deadline: float) -> bytes:
        length = response.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > MAX_ANSWER:
            raise QueryError(
                f"{self.address} answered {response.status} with a length of {length[:20] or 'unknown'}, expected at "
                f"most {MAX_ANSWER} bytes; is it a server of vlp_gym?"
            )
        content = bytearray()
        while len(content) < int(length):
            if time.monotonic() > deadline:
                raise TimeoutError(f"over {self.timeout_s:g} s")
            piece = response.read1(int(length) - len(content))
            if not piece:
                raise ConnectionResetError("the answer was broken off")
            content += piece
        response.read()  # its end
        return bytes(content)

    def _open(self) -> HTTPConnection:
        """The connection of this thread in this process: a forked child must not read its parent's answers."""
        kept = self._kept
        if getattr(kept, "connection", None) is None or kept.process != os.getpid():
            kind = _Https if self._secure else _Http
            made = kind(str(self._host), self._port, timeout=min(CONNECT_S, self.timeout_s))
            try:
                made.connect()
            except TimeoutError:  # not that of an answer: the server may be on its way
                raise ConnectionError("nobody answers there") from None
            made.sock.settimeout(self.timeout_s)
            kept.connection, kept.process = made, os.getpid()
        connection: HTTPConnection = kept.connection
        return connection

    def __repr__(self) -> str:
        return f"Connection({self.address!r})"
