"""HTTP for the `openai` package with bounds: a deadline for a whole request, a cap on its answer, no other server."""

from __future__ import annotations

import asyncio
import os
import threading
import zlib
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import openai

Result = TypeVar("Result")

MAX_BODY = 4 << 20  # bytes of an unpacked answer; one of 100,000 characters takes at most 1.2 MB
MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """An answer that is not read, or a redirect that is not followed.

    Args:
        what: what the endpoint did.
        advice: what to do.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what, self.advice = what, advice


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads at most `MAX_BODY` bytes, and sends to the server of its request only."""

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and read the whole answer, even if it is to be streamed.

        Raises:
            Refused: the answer is too large or packed in an unknown way, or leads to another server.
        """
        for _ in range(1 + MAX_REDIRECTS):
            response = await super().send(request, stream=True, **{**options, "follow_redirects": False})
            try:
                following = response.next_request
                if following is None:
                    return await _read(response)
            finally:
                await response.aclose()
            if not _same_server(request.url, following.url):
                address = following.url.copy_with(raw_path=b"/", fragment=None)  # its path may hold a secret
                raise Refused(
                    f"answered {response.status_code} with a redirect to another server, {address}",
                    "nothing was sent there; if you trust it, give its address as base_url",
                )
            request = following
        raise Refused(f"answered with more than {MAX_REDIRECTS} redirects", "correct base_url")


async def _read(response: Any) -> Any:
    """The same response with its body read and unpacked."""
    packing = response.headers.pop("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip", "deflate"):
        raise Refused(f"packed its answer as {packing[:40]!r}", "only gzip and deflate are read; see which proxy does")
    unpack = zlib.decompressobj(32 + zlib.MAX_WBITS)  # 32: gzip or zlib, as its first bytes say
    body, received = bytearray(), 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        try:
            # The limit is for each chunk: 64 KiB of gzip can be 64 MiB.
            body += chunk if packing == "identity" else unpack.decompress(chunk, MAX_BODY + 1 - len(body))
        except zlib.error as error:
            raise Refused(f"sent {packing} that cannot be unpacked", "see whether a proxy damages answers") from error
        if max(len(body), received) > MAX_BODY:
            raise Refused(
                f"sent more than {MAX_BODY >> 20} MiB",
                "lower max_tokens, or see whether base_url is a chat endpoint",
            )
    # By the constructor: a response does not take a body that was read elsewhere.
    return type(response)(response.status_code, headers=response.headers, content=bytes(body), request=response.request)


def _same_server(url: Any, other: Any) -> bool:
    """Whether a redirect stays on a server; its change from http to https does, the one back does not."""
    here, there = ((address.scheme, address.port or _PORTS.get(address.scheme)) for address in (url, other))
    return url.host == other.host and there in (here, ("https", 443) if here == ("http", 80) else here)


class _Background:
    """An event loop in a daemon thread: there, a request can be given up at any point, even within its headers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="vlp-gym-http", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)


_background = _Background()


def _renew() -> None:
    """A forked child has none of its parent's threads."""
    global _background
    _background = _Background()


os.register_at_fork(after_in_child=_renew)


def run(work: Coroutine[Any, Any, Result], timeout_s: float | None = None) -> Result:
    """Run a coroutine in the background, to its end or until Ctrl-C.

    Raises:
        asyncio.TimeoutError: it took longer than `timeout_s`; it is cancelled then.
    """
    future = _background.start(asyncio.wait_for(work, timeout_s))
    try:
        return future.result()
    finally:
        future.cancel()  # only an interrupt leaves it running


def let_go(process: int, client: BoundedClient) -> None:
    """Close a client without waiting for it; the connections of a forked child's parent are not the child's."""
    if process == os.getpid():
        _background.start(client.aclose())
