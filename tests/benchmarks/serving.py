"""What a served reward model costs: frames a second, latency and bytes, against the model in the same process.

python tests/benchmarks/serving.py --out runs/bench
python tests/benchmarks/serving.py --clients 1 4 --frames 64
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from measure import machine, spread
from tqdm import tqdm

from vlp_gym import load_reward_model
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.windows import window_indices
from vlp_gym.models.protocol import ContextualModel
from vlp_gym.serving import RemoteModel
from vlp_gym.storage import write_atomic

HEADERS = 400  # bytes around a body, both ways


@dataclass(frozen=True)
class Options:
    """Measure a server on this machine; each client asks for the score of its newest frame and waits."""

    model: str = "vlp-compact"
    """Reward model."""
    clients: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of clients."""
    frames: int = 256
    """Frames of each measurement, over all clients."""
    size: int = 224
    """Side of a frame, in pixels."""
    blocks: int = 3
    """Blocks of A B B A."""
    threads: int = 1
    """Torch threads of the server and of the bare model."""
    out: Path = Path("runs/bench")
    """Where serving.json goes."""


class Client:
    """One environment: random frames of one episode, each scored when it comes."""

    def __init__(self, address: str, options: Options, seed: int) -> None:
        self.remote = RemoteModel(address)
        self.guard = GuardedModel(self.remote)
        self.text = self.guard.encode_text(["press the button"], where="benchmark")
        self.frame = np.random.default_rng(seed).integers(0, 256, (1, options.size, options.size, 3), np.uint8)
        self.tokens: list[torch.Tensor] = []
        self.latency_s: list[float] = []
        self.bytes = 0
        exchange = self.remote._connection._exchange

        def counted(path: str, body: bytes | None, headers: dict[str, str]) -> Any:
            reply = exchange(path, body, headers)
            self.bytes += len(body or b"") + len(reply.body) + HEADERS
            return reply

        self.remote._connection._exchange = counted  # type: ignore[method-assign]

    def play(self, frames: int) -> None:
        """Score so many new frames."""
        for _ in range(frames):
            self.frame.reshape(-1).view(np.uint32)[0] += 1  # another frame
            started = time.perf_counter()
            self.tokens.append(self.guard.encode_frames(torch.from_numpy(self.frame), where="benchmark")[0])
            indices, mask = window_indices(len(self.tokens), self.remote.window, self.remote.history)
            window = torch.stack([self.tokens[index] for index in indices])
            self.guard.score(window[None], self.text, torch.from_numpy(mask)[None], where="benchmark")
            self.latency_s.append(time.perf_counter() - started)


def bare_seconds(model: Any, options: Options, batch: int) -> tuple[float, float]:
    """Seconds a frame of a loop over the model in batches, by the clock and of the processor."""
    frames = torch.randint(0, 256, (batch, options.size, options.size, 3), dtype=torch.uint8)
    text = model.encode_text(["press the button"]).expand(batch, -1, -1)
    mask = torch.ones(batch, model.window, dtype=torch.bool)
    rounds = max(options.frames // batch, 1)
    started, worked = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for _ in range(rounds):
            tokens = model.encode_frames(frames)
            if isinstance(model, ContextualModel):
                tokens = model.encode_in_context(tokens, tokens)
            score = model.score_in_context if isinstance(model, ContextualModel) else model.score
            windows = tokens[:, None].expand(-1, model.window, -1, -1).contiguous()
            score(windows, text, mask).preference.tolist()
    count = rounds * batch
    return (time.perf_counter() - started) / count, (time.process_time() - worked) / count


def served_seconds(clients: Sequence[Client], server: psutil.Process, options: Options) -> tuple[float, float]:
    """Seconds a frame through the server, by the clock and of the server's processor."""
    each = max(options.frames // len(clients), 1)
    threads = [threading.Thread(target=client.play, args=(each,)) for client in clients]
    before, started = server.cpu_times(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, after = time.perf_counter() - started, server.cpu_times()
    count = each * len(clients)
    return spent / count, (after.user + after.system - before.user - before.system) / count


def measure(address: str, server: psutil.Process, model: Any, count: int, options: Options) -> dict[str, Any]:
    """The figures for so many clients."""
    clients = [Client(address, options, seed) for seed in range(count)]
    batch = min(count, 64)
    served_seconds(clients, server, options)  # warms up; the window is full afterwards
    for client in clients:
        client.latency_s.clear()
        client.bytes = 0
    served: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    for _ in range(options.blocks):
        bare += [bare_seconds(model, options, batch)]
        served += [served_seconds(clients, server, options), served_seconds(clients, server, options)]
        bare += [bare_seconds(model, options, batch)]
    (wall, worked), (bare_wall, bare_worked) = np.array(served).T, np.array(bare).T
    latency = np.concatenate([client.latency_s for client in clients])
    sent = sum(client.bytes for client in clients) / len(latency)
    window = model.window * options.size**2 * 3
    return {
        f"{count} clients: frames/s": spread(1 / wall),
        f"{count} clients: frames/s, served / bare model in batches of {batch}": spread(bare_wall / wall),
        f"{count} clients: processor time a frame, bare model / server": spread(bare_worked / worked),
        f"{count} clients: p99 latency, ms": round(float(np.quantile(latency, 0.99)) * 1e3, 1),
        f"{count} clients: p99 latency / time of a bare batch": round(
            float(np.quantile(latency, 0.99)) / float(np.median(bare_wall) * batch), 2
        ),
        f"{count} clients: bytes a frame, resent window (T = {model.window}) / served": round(window / sent, 2),
    }


def main(options: Options) -> None:
    """Start a server, measure and print a table."""
    torch.set_num_threads(options.threads)
    model = load_reward_model(options.model)
    command = [sys.executable, "-m", "vlp_gym.commands.main", "serve", options.model, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--threads", str(options.threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().partition("model='")[2].partition("'")[0]
        result: dict[str, Any] = {"machine": machine(), "n": 2 * options.blocks}
        for count in tqdm(options.clients, desc="clients"):
            result |= measure(address, psutil.Process(process.pid), model, count, options)
    finally:
        process.terminate()
        process.wait()
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "serving.json", json.dumps(result, indent=2).encode())
    for name, value in result.items():
        print(f"{name:80} {value}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
