"""Start and stop a server."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

from vlp_gym.errors import check_packages
from vlp_gym.serving.wire import TOKEN_VARIABLE, check_count

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
MIN_TOKEN = 16
CONNECTIONS = 1024
KEEP_ALIVE_S = 60
GRACE_S = 10


def check_token(token: str | None) -> str | None:
    """The token, if it is one that a header can hold.

    Raises:
        ValueError: it is too short, or has other characters.
    """
    if not token:
        return None
    if not (token.isascii() and token.isprintable() and " " not in token and len(token) >= MIN_TOKEN):
        raise ValueError(
            f"{TOKEN_VARIABLE}: expected at least {MIN_TOKEN} letters, digits or signs, without spaces; make one with "
            "`openssl rand -hex 32`"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def run_server(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8300,
    token: str | None = None,
    device: str = "auto",
    max_batch: int = 64,
    cache_mb: int = 512,
    threads: int | None = None,
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM.

    Args:
        model: a name for `load_reward_model`.
        host: address to listen at.
        port: 0 takes a free one, which is printed.
        token: that clients must have; needed beyond loopback.
        device: of the model; "auto" takes CUDA if there is one.
        max_batch: most windows in one call of the model.
        cache_mb: MiB for tokens of frames and sentences, on the device of the model.
        threads: of torch.

    Raises:
        MissingExtraError: Starlette or uvicorn is not installed.
        ValueError: an argument makes no sense, there is no token beyond loopback, or the model cannot be served.
        OSError: the port is taken.
    """
    check_packages(dict.fromkeys(("starlette", "uvicorn"), "serve"), "a server needs")
    for name, value in (("--max-batch", max_batch), ("--cache-mb", cache_mb), ("--threads", threads)):
        if value is not None:
            check_count(value, name)
    if not 0 <= port <= 65535:
        raise ValueError(f"--port: expected 0 to 65535, got {port}")
    token = check_token(token)
    if token is None and not is_loopback(host):
        raise ValueError(
            f"--host {host}: others can reach this address, and nothing would keep them out; set {TOKEN_VARIABLE} to a "
            "secret (`openssl rand -hex 32`), here and for the clients"
        )
    listening = _listen(host, port)  # before the model is loaded: a taken port is an error at once
    try:
        _serve(listening, host, token, model, device, max_batch, cache_mb << 20, threads)
    finally:
        listening.close()


def _serve(
    listening: socket.socket, host: str, token: str | None, name: str, device: str, max_batch: int, cache: int,
    threads: int | None,
) -> None:  # fmt: skip
    from vlp_gym.models.registry import place_model
    from vlp_gym.serving.answer import Answerer
    from vlp_gym.serving.app import Limits, make_app
    from vlp_gym.serving.identity import describe
    from vlp_gym.serving.worker import Worker

    limits = Limits()
    answerer = Answerer(place_model(name, device), cache)
    served = describe(answerer.model, name, max_body=limits.max_body, max_places=limits.max_places)
    worker = Worker(answerer, max_batch, max_waiting=CONNECTIONS, threads=threads)
    hosts = LOOPBACK | {host.lower()} if is_loopback(host) else None
    server = http_server(make_app(worker, served, token=token, hosts=hosts, limits=limits))
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    secret = f", with {TOKEN_VARIABLE} set there as here" if token else ""
    print(f"serving {name} on {answerer.model.device} at {address}; clients take model={address!r}{secret}", flush=True)
    listening.listen(CONNECTIONS)
    try:
        server.run(sockets=[listening])
    finally:
        worker.stop()
        print(
            f"{worker.answered} questions answered in {worker.batches} batches, {answerer.encoded} frames encoded",
            file=sys.stderr,
        )


def http_server(app: Any) -> Any:
    """A `uvicorn.Server` with limits, which logs no requests."""
    import uvicorn

    from vlp_gym.serving.slow import ImpatientProtocol

    config: Any = {
        "http": ImpatientProtocol, "ws": "none", "lifespan": "off", "log_config": None, "access_log": False,
        "server_header": False, "date_header": False, "proxy_headers": False, "limit_concurrency": CONNECTIONS,
        "timeout_keep_alive": KEEP_ALIVE_S, "timeout_graceful_shutdown": GRACE_S,
        "h11_max_incomplete_event_size": 32 << 10,
    }  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, **config))


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host}: not an address of this machine ({error})") from None
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(f"cannot listen at {host}:{port}: {error}; choose another --port") from None
    return made
