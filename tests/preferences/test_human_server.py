"""Connections that never end, or bring too much."""

from __future__ import annotations

import http.client
import socket
import threading
import time

import pytest

from vlp_gym.preferences import human_server
from vlp_gym.preferences.human_server import MAX_CONNECTIONS, MAX_REQUEST, LabelServer


@pytest.fixture
def server():
    server = LabelServer("press the button")
    yield server
    server.close()


def connect(server):
    return socket.create_connection(server.server_address, timeout=20)


def state(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    connection.request("GET", f"/{server.token}/state")
    status = connection.getresponse().status
    connection.close()
    return status


def eventually(holds):
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def drip(connection, piece, pause_s):
    """Send pieces until the other side ends the connection; the seconds that it took, at most 20."""
    start = time.monotonic()
    while time.monotonic() - start < 20:
        try:
            connection.sendall(piece)
            connection.settimeout(pause_s)
            if connection.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


@pytest.mark.parametrize(
    "begin",
    ["", "GET ", "GET /{token}/state HTTP/1.1\r\nX: ", "POST /{token}/label HTTP/1.1\r\nHost: localhost\r\n{body}"],
)
def test_a_request_that_drips_is_ended(server, monkeypatch, begin):
    monkeypatch.setattr(human_server, "REQUEST_S", 0.4)
    with connect(server) as connection:
        connection.sendall(begin.format(token=server.token, body="Content-Length: 900\r\n\r\n").encode())
        assert 0.3 < drip(connection, b"a", 0.02) < 10
    assert state(server) == 200
    assert eventually(lambda: not server._until)


def test_an_answer_that_nobody_takes_is_ended(server, monkeypatch):
    monkeypatch.setattr(human_server, "ANSWER_S", 0.4)
    server.page = bytes(64 << 20)  # more than the kernel buffers
    with connect(server) as connection:
        connection.sendall(f"GET /{server.token}/ HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert eventually(lambda: len(server._until) == 1)
        assert eventually(lambda: not server._until)
    assert state(server) == 200


@pytest.mark.parametrize(("lines", "status"), [(1, b"200"), (3, b"403")])
def test_a_request_is_read_up_to_a_limit(server, lines, status):
    """Python's own limit are 100 lines of 64 KiB."""
    line = f"X: {'a' * 60_000}\r\n"
    assert len(line) + 1000 < MAX_REQUEST < 3 * len(line)
    with connect(server) as connection:
        connection.sendall(f"GET /{server.token}/state HTTP/1.1\r\n{line * lines}Host: localhost\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.0 " + status  # beyond the limit no host is seen


def test_many_idle_connections_do_not_keep_the_page_away(server):
    idle = [connect(server) for _ in range(3 * MAX_CONNECTIONS)]
    assert [state(server) for _ in range(3)] == [200] * 3
    assert len(server._until) <= MAX_CONNECTIONS
    assert eventually(lambda: threading.active_count() <= MAX_CONNECTIONS + 10)
    assert idle[0].recv(1) == b""  # the oldest went
    for connection in idle:
        connection.close()
