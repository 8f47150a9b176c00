"""The web server of `HumanLabeler`: one page, for this computer only.

The page, ``label.html``, fetches the state of the round, shows two clips, and posts the label of a pair. Other web
sites cannot label: the address contains a token that they do not know, and requests that name another host are refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from vlp_gym.preferences.buffer import EQUAL, FIRST, SECOND, SKIP

LABELS = {"left": FIRST, "right": SECOND, "equal": EQUAL, "skip": SKIP}
MAX_BODY = 1024  # bytes of a request's body; a label takes about 50
MAX_REQUEST = 128 * 1024  # bytes of a request with its headers and what is read of a body that is too large
MAX_CONNECTIONS = 64  # a browser opens about 6
REQUEST_S, ANSWER_S = 10.0, 60.0  # for a request to come whole, and for its answer to be taken
_KNOWN = "expected round and pair as numbers and label as left, right, equal, skip, undo or stop"


class Round:
    """Pairs to label, and the labels so far.

    Args:
        number: the round's number; labels for another round are refused.
        pairs: N.
        clip: returns the picture file of a pair's side, "left" or "right".
    """

    def __init__(self, number: int, pairs: int, clip: Callable[[int, str], bytes]) -> None:
        self.number, self.pairs, self.clip = number, pairs, clip
        self.labels: list[float] = []
        self.ended = threading.Event()  # set once the page knows it too: then the server may stop
        self._closed = False
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        return self._closed or len(self.labels) == self.pairs

    def press(self, number: int, pair: int, key: str) -> bool:
        """Take a label, "undo" or "stop"; False, without effect, if it is not for the current pair."""
        with self._lock:
            if self.is_over or (number, pair) != (self.number, len(self.labels)) or (key == "undo" and not self.labels):
                return False
            if key == "undo":
                self.labels.pop()
            elif key == "stop":
                self._closed = True
            else:
                self.labels.append(LABELS[key])
            return True

    def close(self) -> list[float]:
        """End the round; returns the labels of all N pairs, NaN for those not reached."""
        with self._lock:
            self._closed = True
            return self.labels + [SKIP] * (self.pairs - len(self.labels))


class LabelServer(ThreadingHTTPServer):
    """Serves the page at `url` in a background thread, from the start.

    Args:
        instruction: the heading of the page.
        port: port on 127.0.0.1; 0 takes a free one.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS  # of a shorter queue, the system drops connections for a second and more

    def __init__(self, instruction: str, port: int = 0) -> None:
        self._until: dict[socket.socket, float] = {}  # open connections, oldest first, and when they are ended
        super().__init__(("127.0.0.1", port), _Handler)
        self.instruction = instruction
        self.round = Round(0, 0, lambda *_: b"")
        self.token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        page = resources.files("vlp_gym.preferences").joinpath("label.html").read_text(encoding="utf-8")
        self.page = page.replace("NONCE", self.nonce).encode()
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"
        threading.Thread(target=self.serve_forever, args=(0.05,), name="vlp-gym-label", daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, address: Any) -> None:
        """Answer in a thread; with too many connections the oldest must go, so that nobody can keep the page away."""
        if len(self._until) >= MAX_CONNECTIONS:
            self._end(next(iter(self._until), request))
        self.allow(request, REQUEST_S)
        super().process_request(request, address)

    def allow(self, connection: Any, seconds: float) -> None:
        """End a connection after some seconds from now, however slowly it drips: a time-out would be for each read."""
        self._until[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        """Called a few times a second by `serve_forever`."""
        now = time.monotonic()
        for connection, until in list(self._until.items()):
            if until < now:
                self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        """The end of each connection."""
        self._until.pop(request, None)
        super().shutdown_request(request)

    def _end(self, connection: socket.socket) -> None:
        self._until.pop(connection, None)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it

    def handle_error(self, request: Any, address: Any) -> None:
        """Print errors, except that a browser hung up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)


class _Beginning(io.RawIOBase):
    """The first bytes of a stream, as if it ended there."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Beginning(self.rfile, MAX_REQUEST))

    def do_GET(self) -> None:
        path, asked = self._path(), self.server.round
        if path is None:
            return
        clip = re.fullmatch("clip/([0-9]{1,9})/([0-9]{1,9})/(left|right)", path)
        if path == "":
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        elif path == "state":
            self._show(asked)
        elif clip and int(clip[1]) == asked.number and int(clip[2]) < asked.pairs:
            # The address contains the token and the round, so no other clip will have it.
            self._answer(200, asked.clip(int(clip[2]), clip[3]), "image/webp", cache="private, max-age=3600")
        else:
            self._answer(404, b"there is nothing here")

    def do_POST(self) -> None:
        path, asked = self._path(), self.server.round
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length):
            return self._answer(411, b"expected a Content-Length")
        body = self.rfile.read(min(int(length), 64 * MAX_BODY))  # left unread, it would reset the connection
        if int(length) > MAX_BODY:
            return self._answer(413, b"expected at most %d bytes" % MAX_BODY)
        if path != "label":
            return self._answer(404, b"there is nothing here")
        try:
            pressed = json.loads(body)
            number, pair, key = pressed["round"], pressed["pair"], pressed["label"]
            if type(number) is not int or type(pair) is not int or key not in (*LABELS, "undo", "stop"):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            return self._answer(400, _KNOWN.encode())
        if not asked.press(number, pair, key):
            return self._answer(409, b"this is not the pair to be labelled now")
        try:
            self._show(asked)
        finally:
            if asked.is_over:
                asked.ended.set()

    def _path(self) -> str | None:
        """The path after the token; None after a refusal."""
        if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?", self.headers.get("Host", "")):
            self._answer(403, b"expected the host 127.0.0.1 or localhost")  # other hosts: DNS rebinding
            return None
        token, slash, path = self.path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._answer(403, b"open the whole address that the terminal shows")
            return None
        return path

    def _show(self, asked: Round) -> None:
        state = {"round": asked.number, "pair": len(asked.labels), "pairs": asked.pairs, "over": asked.is_over}
        document = json.dumps({"instruction": self.server.instruction, **state})
        self._answer(200, document.encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain", cache: str = "no-store") -> None:
        self.server.allow(self.connection, ANSWER_S)
        nonce = f"'nonce-{self.server.nonce}'"
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": cache,
            "Content-Security-Policy": f"default-src 'none'; script-src {nonce}; style-src {nonce}; "
            "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no requests: the terminal shows the address."""
