"""What a served reward model costs: frames a second, latency and bytes, against the model in the same process.

python tests/benchmarks/serving.py --out runs/bench
python tests/benchmarks/serving.py --random ViT-B-32 --frames 64
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from vlp_gym.models.liv import LIVModel
from vlp_gym.models.protocol import ContextualModel
from vlp_gym.serving import RemoteModel
from vlp_gym.storage import write_atomic

HEADERS = 400  # bytes around a body, both ways


@dataclass(frozen=True)
class Options:
    """Measure a server on this machine; each client asks for the score of its newest frame and waits."""

    model: str = "vlp-compact"
    """Reward model."""
    random: str = ""
    """Instead: LIV over this architecture of open_clip, with random weights."""
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

    def each(self, clients: int) -> int:
        """Frames of each of so many clients."""
        return max(self.frames // clients, 1)


class Client:
    """One environment: random frames of one episode, each scored when it comes."""

    def __init__(self, address: str, options: Options, seed: int) -> None:
        self.remote = RemoteModel(address)
        self.guard = GuardedModel(self.remote)
        self.text = self.guard.encode_text(["press the button"], where="benchmark")
        self.frame = np.random.default_rng(seed).integers(0, 256, (1, options.size, options.size, 3), np.uint8)
        self.tokens: list[torch.Tensor] = []
        self.scores = torch.empty(0)
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
            scores = self.guard.score(window[None], self.text, torch.from_numpy(mask)[None], where="benchmark")
            self.scores = torch.cat([self.scores, scores.preference])
            self.latency_s.append(time.perf_counter() - started)


@dataclass
class Bare:
    """Loops over the model in batches: seconds a frame of each, by the clock and of the processor; of each batch."""

    wall_s: list[float] = field(default_factory=list)
    worked_s: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)


def ask_bare(model: Any, options: Options, batch: int, bare: Bare) -> None:
    """Measure one loop."""
    frames = torch.randint(0, 256, (batch, options.size, options.size, 3), dtype=torch.uint8)
    text = model.encode_text(["press the button"]).expand(batch, -1, -1)
    mask = torch.ones(batch, model.window, dtype=torch.bool)
    rounds = max(options.frames // batch, 1)
    started, worked = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for _ in range(rounds):
            since = time.perf_counter()
            tokens = model.encode_frames(frames)
            if isinstance(model, ContextualModel):
                tokens = model.encode_in_context(tokens, tokens)
            score = model.score_in_context if isinstance(model, ContextualModel) else model.score
            windows = tokens[:, None].expand(-1, model.window, -1, -1).contiguous()
            score(windows, text, mask).preference.tolist()
            bare.batch_s.append(time.perf_counter() - since)
    bare.wall_s.append((time.perf_counter() - started) / (rounds * batch))
    bare.worked_s.append((time.process_time() - worked) / (rounds * batch))


def ask_all(clients: Sequence[Client], options: Options) -> float:
    """Seconds a frame of all clients at once, by the clock."""
    threads = [threading.Thread(target=client.play, args=(options.each(len(clients)),)) for client in clients]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / (options.each(len(clients)) * len(clients))


def served_seconds(clients: Sequence[Client], server: psutil.Process, options: Options) -> tuple[float, float]:
    """Seconds a frame through the server, by the clock and of the server's processor."""
    before, spent, after = server.cpu_times(), ask_all(clients, options), server.cpu_times()
    count = options.each(len(clients)) * len(clients)
    return spent, (after.user + after.system - before.user - before.system) / count


def measure(address: str, server: psutil.Process, model: Any, count: int, options: Options) -> dict[str, Any]:
    """The figures for so many clients."""
    clients = [Client(address, options, seed) for seed in range(count)]
    batch = min(count, 64)
    served_seconds(clients, server, options)  # warms up; the window is full afterwards
    for client in clients:
        client.latency_s.clear()
        client.bytes = 0
    served: list[tuple[float, float]] = []
    bare = Bare()
    for _ in range(options.blocks):
        ask_bare(model, options, batch, bare)
        served += [served_seconds(clients, server, options), served_seconds(clients, server, options)]
        ask_bare(model, options, batch, bare)
    wall, worked = np.array(served).T
    latency = np.concatenate([client.latency_s for client in clients])
    p99, service_s = float(np.quantile(latency, 0.99)), float(np.median(bare.batch_s))
    sent = sum(client.bytes for client in clients) / len(latency)
    window = model.window * options.size**2 * 3
    return {
        f"{count} clients: frames/s": spread(1 / wall),
        f"{count} clients: frames/s, served / bare model in batches of {batch}": spread(np.array(bare.wall_s) / wall),
        f"{count} clients: processor time a frame, bare model / server": spread(np.array(bare.worked_s) / worked),
        f"{count} clients: p99 latency, ms": round(p99 * 1e3, 1),
        f"{count} clients: p99 latency / median time of a bare batch": round(p99 / service_s, 2),
        f"{count} clients: p99 time of a bare batch / its median": round(
            float(np.quantile(bare.batch_s, 0.99)) / service_s, 2
        ),
        f"{count} clients: bytes a frame, resent window (T = {model.window}) / served": round(window / sent, 2),
    }


def main(options: Options) -> None:
    """Start a server, measure and print a table."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        name = save_random(options.random, folder) if options.random else options.model
        result = {"machine": machine(), "n": 2 * options.blocks} | serve_and_measure(name, options)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "serving.json", json.dumps(result, indent=2).encode())
    for title, value in result.items():
        print(f"{title:80} {value}")


def save_random(architecture: str, folder: str) -> str:
    """Save a LIV with random weights; returns the folder."""
    torch.manual_seed(0)
    LIVModel(architecture=architecture).save_pretrained(folder)
    return folder


def serve_and_measure(name: str, options: Options) -> dict[str, Any]:
    """The figures for all numbers of clients."""
    model = load_reward_model(name)
    command = [sys.executable, "-m", "vlp_gym.commands.main", "serve", name, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--threads", str(options.threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    result: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        address = process.stdout.readline().partition("model='")[2].partition("'")[0]
        for count in tqdm(options.clients, desc="clients"):
            result |= measure(address, psutil.Process(process.pid), model, count, options)
    finally:
        process.terminate()
        process.wait()
    return result


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
