"""The server: who may ask, how much, and how it starts and ends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("tyro")

from tests.command_line import run
from tests.hostile_requests import attack, exchange, request, valid
from tests.reward_server import EveryPart, RewardServer, ThreadServer
from tests.tiny import awake_model, tiny_model
from vlp_gym import errors
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.serving import slow
from vlp_gym.serving.app import Limits
from vlp_gym.serving.identity import describe
from vlp_gym.serving.run import check_token, is_loopback
from vlp_gym.testing import PaintedModel

SECRET = "a-secret-of-32-characters-or-so-"


@pytest.fixture(scope="module")
def server():
    with ThreadServer(EveryPart(), name="every", limits=Limits(max_body=1 << 20, max_bodies=2 << 20)) as running:
        yield running


def answer(server, raw: bytes) -> tuple[int, dict]:
    """The status and the document that come back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(raw)
        came = b""
        while chunk := connection.recv(65536):
            came += chunk
    head, _, body = came.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def fingerprint(server) -> str:
    return server.client().served.fingerprint


@pytest.mark.parametrize(
    ("path", "headers", "status", "message"),
    [
        ("/v1/score", {"Origin": "http://evil.example"}, 403, "expected a client of vlp_gym, not a web page"),
        ("/v1/score", {"Host": "evil.example:80"}, 403, "expected a client of vlp_gym, not a web page"),
        ("/v1/score", {"Content-Type": "text/plain"}, 415, "expected a body of the type application/x-safetensors"),
        ("/v1/score", {"Content-Length": None}, 411, "expected a Content-Length"),
        ("/v1/scores", {}, 404, "expected GET /v1/model or POST /v1/{text,frames,score,prefer,novelty}"),
        ("/v1/model", {}, 404, "expected GET /v1/model or POST /v1/{text,frames,score,prefer,novelty}"),
        ("/v1/score", {"Content-Length": str((1 << 20) + 1)}, 413, "expected at most 1048576 bytes, got 1048577"),
        ("/v1/score", {"X-VLP-Model": "0123"}, 412, None),
        ("/v1/text", {}, 400, None),
    ],
)
def test_what_is_refused(server, path, headers, status, message):
    came, document = answer(server, request(path, valid()["score"], fingerprint(server), **headers))
    assert (came, document["message"] if message else None) == (status, message)


def test_a_token_is_needed_before_anything_else():
    with ThreadServer(PaintedModel(), token=SECRET) as server:
        body, model = valid()["score"], server.client().served.fingerprint
        for given in (None, "Bearer wrong", f"Bearer {SECRET}x", "Basic eDp5"):
            assert answer(server, request("/v1/x", body, model, Authorization=given))[0] == 401
        right = f"Bearer {SECRET}"
        assert exchange(server.port, request("/v1/score", body, model, Authorization=right), short=False) == 200


def test_bodies_in_work_are_limited_together(server):
    """Two that are on their way take all there is; a client that asks meanwhile waits until one has gone."""
    open_ones = []
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        connection.sendall(request("/v1/score", b"", fingerprint(server), **{"Content-Length": 1 << 20}))
        open_ones.append(connection)
    time.sleep(0.2)
    status, document = answer(server, request("/v1/score", valid()["score"], fingerprint(server)))
    assert (status, document["kind"], document["message"]) == (
        503,
        "busy",
        "too many bytes are in work; ask again soon",
    )
    model = server.client()
    timer = threading.Timer(0.5, lambda: [connection.close() for connection in open_ones])
    timer.start()
    tokens, text = model.encode_frames(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)), model.encode_text(["press"])
    assert model.score(tokens[None], text, torch.ones(1, 1, dtype=torch.bool)).preference.tolist() == [0.0]
    assert model.retries > 0


@pytest.mark.parametrize("sent", [b"", b"POST /v1/sc", "half"])
def test_a_slow_client_is_cut_off(server, monkeypatch, sent):
    monkeypatch.setattr(slow, "REQUEST_S", 0.5)
    raw = request("/v1/score", valid()["score"], fingerprint(server))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(raw[: len(raw) // 2] if sent == "half" else sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert time.monotonic() - began < 20
    assert exchange(server.port, raw, short=False) == 200


def test_a_client_that_does_not_read_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(slow, "READING_S", 0.5)
    raw = request("/v1/model", b"", "", Connection="keep-alive").replace(b"POST", b"GET", 1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(100_000 * raw)  # some MB of answers that nobody reads
    assert server.client().served.name == "every"


def test_random_hostile_requests(server):
    statuses = attack(server, 100, seed=1)
    assert statuses[200] < statuses[400] < 100


def test_models_that_cannot_be_served(server):
    for model, message in (
        (server.client(), "it is served already; give its clients that address"),
        (Goals(), "it takes pictures of goals only, and clients of a served model send sentences"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            describe(GuardedModel(model), "it", max_body=1, max_places=1)


class Goals(PaintedModel):
    """Takes pictures only."""

    needs_goal = True

    def encode_goals(self, frames):
        return self.encode_frames(frames)


def test_a_fingerprint_is_that_of_weights_and_settings():
    def of(model, name="a"):
        return describe(GuardedModel(model), name, max_body=1, max_places=1).fingerprint

    other = awake_model()
    with torch.no_grad():
        other.direction_head.weight[0, -1] += 1e-6
    assert of(awake_model()) == of(awake_model(), "b")
    assert (
        len({of(awake_model()), of(other), of(tiny_model(window=5)), of(PaintedModel(), "a"), of(PaintedModel(), "b")})
        == 5
    )


# ---------------------------------------------------------------- the command


@pytest.fixture
def error(capsys):
    def of(*arguments):
        assert run("serve", *arguments) == 2
        return capsys.readouterr().err.strip()

    return of


def test_beyond_this_machine_a_token_is_needed(error, monkeypatch):
    assert error("vlp-compact", "--host", "0.0.0.0") == (
        "vlp-gym: error: --host 0.0.0.0: others can reach this address, and nothing would keep them out; set "
        "VLP_GYM_SERVER_TOKEN to a secret (`openssl rand -hex 32`), here and for the clients"
    )
    monkeypatch.setenv("VLP_GYM_SERVER_TOKEN", "short")
    assert error("vlp-compact", "--host", "0.0.0.0") == (
        "vlp-gym: error: VLP_GYM_SERVER_TOKEN: expected at least 16 letters, digits or signs, without spaces; make one "
        "with `openssl rand -hex 32`"
    )
    assert check_token(SECRET) == SECRET
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "gpu")] == (
        [True] * 3 + [False] * 4
    )


def test_arguments_that_make_no_sense(error):
    assert error("vlp-compact", "--cache-mb", "0") == (
        "vlp-gym: error: --cache-mb: expected a whole number, at least 1, got 0"
    )
    assert error("vlp-compact", "--port", "65536") == "vlp-gym: error: --port: expected 0 to 65535, got 65536"
    assert error("nobody", "--port", "0").startswith("vlp-gym: error: unknown reward model 'nobody'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert error("vlp-compact", "--port", port).startswith(f"vlp-gym: error: cannot listen at 127.0.0.1:{port}: ")


def test_a_missing_extra_is_named_before_anything_is_loaded(error, monkeypatch):
    found = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in ("starlette", "uvicorn") else found(name))
    assert error("nobody") == 'vlp-gym: error: a server needs starlette, uvicorn: pip install "vlp_gym[serve]"'


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_command_and_huge_bodies_take_no_memory(tmp_path):
    with RewardServer("painted", tmp_path, token=SECRET) as server:
        model = server.client()
        before = server.memory()
        huge = b"\0" * model.served.max_body
        bearer = {"Authorization": f"Bearer {SECRET}"}
        for body in (huge, (64).to_bytes(8, "little") + huge[8:]):
            raw = request("/v1/score", body, model.served.fingerprint, **bearer)
            assert exchange(server.port, raw, short=False) == 400
        lie = request("/v1/score", huge, model.served.fingerprint, **bearer, **{"Content-Length": 1 << 40})
        assert exchange(server.port, lie, short=False) in (0, 413)  # it may hang up before we have sent all
        assert server.memory() - before < 200 << 20
        status, said = server.interrupt()
        assert status == 130
        assert "vlp-gym: interrupted; clients wait for the same command" in said
        assert SECRET not in said
