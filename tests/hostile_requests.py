"""Requests that a reward server must survive: `python -m tests.hostile_requests --number 10000`.

Valid requests are changed at random: bytes, lengths, tables of tensors, headers, paths, methods, or they end too early.
Each must be answered with 200 or 4xx, or cut off, in time; afterwards the server answers as before, in little memory.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.reward_server import RewardServer, ThreadServer
from vlp_gym.serving import RemoteModel
from vlp_gym.serving.wire import CONTENT_TYPE, MODEL_HEADER, Ask, Sentence, digest_of, pack_ask

ANSWER_S = 60.0
MAX_GROWTH = 256 << 20


def valid(seed: int = 0) -> dict[str, bytes]:
    """A body for each question."""
    frames = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    named = {digest_of(frame): frame for frame in frames}
    said = {"sentences": [Sentence(text="press the button", truncate=False)], "text": torch.zeros(2, dtype=torch.int32)}
    windows = torch.tensor([[0, 1, 2], [1, 2, 3]], dtype=torch.int32)
    mask = torch.ones(2, 3, dtype=torch.bool)
    return {
        "text": pack_ask(Ask("text", sentences=said["sentences"])),
        "frames": pack_ask(Ask("frames", frames=named)),
        "score": pack_ask(Ask("score", list(named), named, windows, mask=mask, **said)),
        "prefer": pack_ask(Ask("prefer", list(named), named, windows, others=windows, **said)),
        "novelty": pack_ask(Ask("novelty", list(named), named, windows[:, :1])),
    }


def request(path: str, body: bytes, model: str, **headers: Any) -> bytes:
    """A request as it goes over the wire; None leaves a header out."""
    given = {
        "Host": "127.0.0.1", "Content-Type": CONTENT_TYPE, "Content-Length": len(body), MODEL_HEADER: model,
        "Connection": "close", **headers,
    }  # fmt: skip
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


def mutated(rng: random.Random, bodies: dict[str, bytes], model: str) -> tuple[bytes, bool]:
    """One changed request, and whether it may be too short, so that the server would wait for the rest."""
    question = rng.choice(list(bodies))
    body, path = bodies[question], f"/v1/{question}"
    kind = rng.randrange(9)
    if kind == 0:  # another byte here and there, the table of tensors above all
        changed = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(rng.choice([12, 200, len(body)]) % len(body) or 1)] = rng.randrange(256)
        return request(path, bytes(changed), model), False
    if kind == 1:  # not all of it, or more
        cut = rng.randrange(len(body))
        changed = body[:cut] if rng.random() < 0.5 else body + rng.randbytes(cut)
        return request(path, changed, model), False
    if kind == 2:  # another table
        return request(path, _retold(rng, body), model), False
    if kind == 3:  # a length that lies
        length = rng.choice([0, 1, len(body) - 1, len(body) + 1, 1 << 24, 1 << 40, -1, "", "x", "1e3", "0x10", None])
        return request(path, body, model, **{"Content-Length": length}), True
    if kind == 4:  # the body of another question
        return request(path, bodies[rng.choice(list(bodies))], model), False
    if kind == 5:
        name, value = rng.choice(
            [
                ("Origin", "http://evil.example"), ("Host", "evil.example"), ("Host", None), (MODEL_HEADER, "0" * 32),
                ("Content-Type", "text/plain"), ("Content-Type", None), ("Transfer-Encoding", "chunked"),
                ("Authorization", "Bearer " + "x" * 5000), ("X", "y" * 40_000), ("Expect", "100-continue"),
                ("Content-Encoding", "gzip"), ("Upgrade", "websocket"), (MODEL_HEADER, "\xff\x00"),
            ]
        )  # fmt: skip
        return request(path, body, model, **{name: value}), name == "Transfer-Encoding"
    if kind == 6:
        paths = [
            "/",
            "/v1/",
            "/v1/score/../model",
            "/v1/%2e%2e/x",
            "/docs",
            "//v1/score",
            "/v1/score?x=1",
            "/v1/" + "a" * 9000,
        ]
        return request(rng.choice(paths), body, model), False
    if kind == 7:
        method = rng.choice([b"DELETE", b"OPTIONS", b"PUT", b"GET", b"X" * 9, b"\0"])
        return method + request(path, body, model)[4:], False
    return rng.randbytes(rng.randrange(1, 2000)) + b"\r\n\r\n", True


def _retold(rng: random.Random, body: bytes) -> bytes:
    """The same numbers under a table that says something else of them."""
    length = int.from_bytes(body[:8], "little")
    table = json.loads(body[8 : 8 + length])
    for entry in rng.sample(list(table), 1):
        what = rng.randrange(5)
        if what == 0:
            table[entry]["shape"] = [rng.choice([0, 1, 2**31, 2**62, 2**64, -1, 3]) for _ in range(rng.randrange(5))]
        elif what == 1:
            table[entry]["dtype"] = rng.choice(["F64", "I64", "BF16", "F8_E4M3", "BOOL", "U64", "C64", "", "object"])
        elif what == 2:
            table[entry]["data_offsets"] = [rng.choice([0, 8, 2**40, 2**64, -1]) for _ in range(2)]
        elif what == 3:
            table[rng.choice(["frames.9", "frames.0", "x" * 1000, "__metadata__"])] = table.pop(entry)
        else:
            table = json.loads("[" * 500 + "]" * 500) if rng.random() < 0.3 else {"a": table}
            break
    written = json.dumps(table).encode()
    return len(written).to_bytes(8, "little") + written + body[8 + length :]


def exchange(port: int, raw: bytes, short: bool) -> int:
    """The status of the answer; 0 if there is none. Our half of the connection is closed after a request too short."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            if short:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass  # the server has said no before it had read all
    if answer.startswith(b"HTTP/1.1 100"):  # "go on", which is no answer yet
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def attack(server: RewardServer | ThreadServer, number: int, seed: int = 0, *, progress: bool = False) -> Counter[int]:
    """How often each status came; raises AssertionError for a 5xx, a hang, or a server that is worse off."""
    rng, bodies, model = random.Random(seed), valid(seed), server.client()
    statuses: Counter[int] = Counter()
    before, memory = _asked(model), server.memory()
    for count in range(number):
        raw, short = mutated(rng, bodies, model.served.fingerprint)
        status = exchange(server.port, raw, short)
        assert (status == 0 and short) or status == 200 or 400 <= status < 500, (status, raw[:500])
        statuses[status] += 1
        if progress and count % 1000 == 999:
            print(f"{count + 1}: {dict(sorted(statuses.items()))}, {server.memory() >> 20} MiB", flush=True)
    assert _asked(model) == before
    assert server.memory() - memory < MAX_GROWTH, f"{memory >> 20} MiB became {server.memory() >> 20}"
    return statuses


def _asked(model: RemoteModel) -> list[float]:
    frames = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    frames[0, 0, 0, 1] = 7
    tokens, text = model.encode_frames(frames), model.encode_text(["press the button"])
    found: list[float] = model.score(tokens[None], text, torch.ones(1, 1, dtype=torch.bool)).preference.tolist()
    assert found == [7 * 256 / (1 << 24)]
    return found


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, RewardServer("every", Path(folder)) as server:
        statuses = attack(server, options.number, options.seed, progress=True)
        print(f"{dict(sorted(statuses.items()))} in {time.monotonic() - started:.0f} s, {server.memory() >> 20} MiB")


if __name__ == "__main__":
    main()
