"""What a second replica of Ray Serve brings on one machine: two beside one, in A B B A order, by the same clients.

python tests/benchmarks/serving_ray.py --random ViT-B-32 --clients 32 --frames 64
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from measure import machine, spread
from serving import Client, Options, ask_all, save_random

from vlp_gym.storage import write_atomic

REPLICAS = {"one": 1, "two": 2}


@dataclass(frozen=True)
class RayOptions:
    """Measure one replica and two; each has one thread."""

    random: str = "ViT-B-32"
    """LIV over this architecture of open_clip, with random weights."""
    clients: int = 32
    """Number of clients."""
    frames: int = 64
    """Frames of each measurement, over all clients."""
    blocks: int = 3
    """Blocks of A B B A."""
    out: Path = Path("runs/bench")
    """Where serving_ray.json goes."""


def worked_s(application: str) -> list[float]:
    """Seconds of processor time of each replica so far."""
    times = []
    for process in psutil.process_iter(["cmdline"]):
        if f"ServeReplica:{application}:" in " ".join(process.info["cmdline"] or ()):
            spent = process.cpu_times()
            times.append(spent.user + spent.system)
    return times


def measure(clients: dict[str, list[Client]], options: RayOptions) -> dict[str, Any]:
    """The figures."""
    asked = Options(frames=options.frames)
    wall: dict[str, list[float]] = {name: [] for name in REPLICAS}
    busiest: dict[str, list[float]] = {name: [] for name in REPLICAS}
    for name in REPLICAS:
        ask_all(clients[name], asked)  # warms up
    for _ in range(options.blocks):
        for name in ("one", "two", "two", "one"):
            before = worked_s(name)
            wall[name].append(ask_all(clients[name], asked))
            busiest[name].append(max(np.array(worked_s(name)) - before))
    (one, two), (own, shared) = (np.array(list(rows.values())) for rows in (wall, busiest))
    difference = max(
        float((a.scores - b.scores).abs().max()) for a, b in zip(clients["one"], clients["two"], strict=True)
    )
    return {
        "one replica: frames/s": spread(1 / one),
        "two replicas: frames/s": spread(1 / two),
        "frames/s, two replicas / one": spread(one / two),
        "processor time, one replica / the busier of two": spread(own / shared),
        "largest difference of a value": difference,
    }


def main(options: RayOptions) -> None:
    """Start Ray, measure and print a table."""
    torch.set_num_threads(1)
    import ray
    from ray import serve

    from vlp_gym.serving.ray import deployment

    with tempfile.TemporaryDirectory() as folder:
        model = save_random(options.random, folder)
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )  # fmt: skip
        try:
            clients = {}
            for name, count in REPLICAS.items():
                served = deployment(model).options(num_replicas=count, ray_actor_options={"num_cpus": 0.5})
                serve.run(served.bind(), name=name, route_prefix=f"/{name}")
                address = f"http://127.0.0.1:8000/{name}"
                clients[name] = [Client(address, Options(), seed) for seed in range(options.clients)]
            result = {"machine": machine(), "n": 2 * options.blocks} | measure(clients, options)
        finally:
            serve.shutdown()
            ray.shutdown()
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "serving_ray.json", json.dumps(result, indent=2).encode())
    for title, value in result.items():
        print(f"{title:80} {value}")


if __name__ == "__main__":
    main(tyro.cli(RayOptions, description=__doc__))
