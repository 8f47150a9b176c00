"""The server's web application: who may ask, how much, and what is answered when something is wrong.

Everything about a request that can be checked before its body is read is checked before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vlp_gym.errors import InstructionError, VLPError, reason
from vlp_gym.serving.answer import Answer, TooLarge, Unknown
from vlp_gym.serving.wire import (
    CONTENT_TYPE,
    MODEL_HEADER,
    QUESTIONS,
    REQUEST_HEADER,
    TOKEN_VARIABLE,
    Ask,
    Malformed,
    Refusal,
    Served,
    json_body,
    pack,
    read_ask,
)
from vlp_gym.serving.worker import Busy, Worker

logger = logging.getLogger("vlp_gym")

ANSWER_S = 300.0  # for the model
AT_ONCE = 1 << 20  # bytes of a body that is read in a moment; a larger one must not keep others waiting


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        max_body: bytes of one request.
        max_bodies: bytes of all requests in work together.
        max_places: B * T of one request.
    """

    max_body: int = 32 << 20
    max_bodies: int = 128 << 20
    max_places: int = 16_384


class _Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "request", unknown: Sequence[bytes] = ()) -> None:
        self.status = status
        self.refusal = Refusal(kind=kind, message=message, unknown=[name.hex() for name in unknown])  # type: ignore[arg-type]


class _Door:
    """Who may come in, with how much.

    Args:
        served: the model.
        token: that clients must have; None takes everyone who can reach this address.
        hosts: names that requests may give this server; None takes all. On loopback another name is that of a web
            site that has led a browser here (DNS rebinding).
        limits: see `Limits`.
    """

    def __init__(self, served: Served, token: str | None, hosts: frozenset[str] | None, limits: Limits) -> None:
        self.served, self.token, self.hosts, self.limits = served, token, hosts, limits
        self.bytes = 0

    def check(self, request: Request) -> None:
        """Raise `_Refused` unless this client may ask."""
        headers = request.headers
        if self.token is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                raise _Refused(401, f"expected the server's token; set {TOKEN_VARIABLE} to it")
        name = re.sub(r":\d*$", "", headers.get("host", "")).lower()
        if "origin" in headers or (self.hosts is not None and name not in self.hosts):
            raise _Refused(403, "expected a client of vlp_gym, not a web page")

    def check_question(self, request: Request) -> None:
        """Raise `_Refused` unless this may be a question to this model."""
        if request.headers.get("content-type") != CONTENT_TYPE:
            raise _Refused(415, f"expected a body of the type {CONTENT_TYPE}")
        model = request.headers.get(MODEL_HEADER, "")
        if model != self.served.fingerprint:
            served = f"{self.served.name} of vlp_gym {self.served.version} ({self.served.fingerprint})"
            raise _Refused(412, f"this server has {served}, and was asked for {model[:64]!r}", "other")

    async def body(self, request: Request) -> bytes:
        """The body of a request, or raise `_Refused`."""
        length = request.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,12}", length):
            raise _Refused(411, "expected a Content-Length")
        size = int(length)
        if size > self.limits.max_body:
            raise _Refused(413, f"expected at most {self.limits.max_body} bytes, got {size}")
        if self.bytes + size > self.limits.max_bodies:
            raise _Refused(503, "too many bytes are in work; ask again soon", "busy")
        self.bytes += size
        request.state.size = size
        return await request.body()

    def let_go(self, request: Request) -> None:
        """The request is over."""
        self.bytes -= getattr(request.state, "size", 0)


def make_app(
    worker: Worker, served: Served, *, token: str | None, hosts: frozenset[str] | None, limits: Limits
) -> Starlette:
    """The application.

    Args:
        worker: answers.
        served: what clients are told of the model.
        token: see `_Door`.
        hosts: see there.
        limits: see `Limits`.
    """
    door = _Door(served, token, hosts, limits)
    lacks = {"prefer": not served.pairwise, "novelty": not served.knowing}
    offered = [question for question in QUESTIONS if not lacks.get(question)]

    async def model(request: Request) -> Response:
        door.check(request)
        return Response(json_body(served), media_type="application/json")

    async def ask(request: Request) -> Response:
        door.check(request)
        question = request.path_params["question"]
        if question not in offered:
            raise HTTPException(404)
        door.check_question(request)
        try:
            body = await door.body(request)
            if len(body) > AT_ONCE:
                asked = await asyncio.to_thread(read_ask, question, body, limits.max_places)
            else:
                asked = read_ask(question, body, limits.max_places)
            del body
            answer = await _answered(worker, asked)
        finally:
            door.let_go(request)
        headers = {REQUEST_HEADER: request.headers.get(REQUEST_HEADER, "")[:64]}
        return Response(pack(answer), media_type=CONTENT_TYPE, headers=headers)

    async def refuse(request: Request, error: Exception) -> Response:
        refused = error if isinstance(error, _Refused) else _as_refused(error)
        if refused.status >= 500:
            logger.warning("%s %s: %s", refused.status, request.url.path[:64], refused.refusal.message[:500])
        headers = {"Retry-After": "1"} if refused.status == 503 else {}
        return Response(
            json_body(refused.refusal), status_code=refused.status, media_type="application/json", headers=headers
        )

    routes = [Route("/v1/model", model, methods=["GET"]), Route("/v1/{question}", ask, methods=["POST"])]
    kinds: Any = dict.fromkeys((_Refused, HTTPException, *_STATUS, Exception), refuse)
    return Starlette(routes=routes, exception_handlers=kinds)


async def _answered(worker: Worker, ask: Ask) -> Answer:
    """The answer to a question, or raise its error, or TimeoutError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer | Exception) -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def done(answer: Answer | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(settle, answer)

    worker.submit(ask, done)
    timer = loop.call_later(ANSWER_S, settle, asyncio.TimeoutError())
    try:
        return await future
    finally:
        timer.cancel()


_STATUS: dict[type[Exception], tuple[int, str]] = {
    Malformed: (400, "request"),
    ClientDisconnect: (400, "request"),  # nobody reads it
    Unknown: (409, "unknown"),
    TooLarge: (413, "request"),
    InstructionError: (422, "instruction"),
    Busy: (503, "busy"),
    asyncio.TimeoutError: (504, "busy"),
    VLPError: (422, "model"),  # it raised, or answered NaN
    TypeError: (500, "model"),  # of a model that breaks its protocol, see `GuardedModel`
}


def _as_refused(error: Exception) -> _Refused:
    if isinstance(error, HTTPException):
        return _Refused(error.status_code, f"expected GET /v1/model or POST /v1/{{{','.join(QUESTIONS)}}}")
    for kind, (status, name) in _STATUS.items():
        if isinstance(error, kind):
            unknown = error.digests if isinstance(error, Unknown) else ()
            return _Refused(status, str(error) or "no answer in time", name, unknown)
    return _Refused(500, f"{type(error).__name__}: {reason(error)}", "model")
