"""Kills a reward server under load: `python -m tests.server_kills --kills 100 --clients 4`.

Painted environments step and ask for their rewards, half of them in the mode "async"; the server is killed at random
moments (SIGKILL) and started again. Every reward must come once, and be that of its own step.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.reward_server import RewardServer
from vlp_gym.engine import QueryEngine
from vlp_gym.testing import PaintedEnv, painted_value
from vlp_gym.wrappers import VLPRewardWrapper


@dataclass
class Counts:
    """What became of the rewards of all clients."""

    steps: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    retries: int = 0
    failed: list[str] = field(default_factory=list)


def client(server: RewardServer, number: int, stop: threading.Event, counts: Counts, lock: threading.Lock) -> None:
    """Step an environment until `stop`, and count."""
    late = number % 2 == 1
    model = server.client(patience_s=300)
    rewards: dict[Any, list[float]] = {}
    engine = QueryEngine(model, mode="async" if late else "sync", timeout_s=300.0)
    env = VLPRewardWrapper(PaintedEnv([50], env=number), "press the button", engine)
    steps = 0
    try:
        episode, over = -1, True
        while not stop.is_set():
            if over:
                env.reset()
                episode, step = episode + 1, 0
                if late:
                    env.take_late_rewards()
            _, reward, over, _, info = env.step(0)
            steps, step = steps + 1, step + 1
            if late:
                for delivery in info["vlp"]["delivered"]:
                    rewards.setdefault(tuple(delivery.ticket), []).append(delivery.reward)
                time.sleep(0.002)  # a worker answers meanwhile
            else:
                rewards.setdefault((0, episode, step), []).append(float(reward))
        if late:
            for delivery in env.flush():
                rewards.setdefault(tuple(delivery.ticket), []).append(delivery.reward)
        env.close()
        engine.close()
    except Exception as error:
        with lock:
            counts.failed.append(f"{type(error).__name__}: {error}")
    with lock:
        counts.steps += steps
        counts.lost += steps - len(rewards)
        counts.doubled += sum(len(values) > 1 for values in rewards.values())
        counts.wrong += sum(
            value != painted_value(number, ticket[1], ticket[2])
            for ticket, values in rewards.items()
            for value in values
        )
        counts.retries += model.retries


def kill_server(kills: int, clients: int, folder: Path, *, seed: int = 0, progress: bool = False) -> Counts:
    """Kill a server so often under the load of so many clients."""
    moments, counts, lock, stop = random.Random(seed), Counts(), threading.Lock(), threading.Event()
    with RewardServer("painted", folder) as server:
        threads = [
            threading.Thread(target=client, args=(server, number, stop, counts, lock), daemon=True)
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for number in range(kills):
            time.sleep(moments.uniform(0.1, 1.5))
            server.restart()
            if progress:
                print(f"{number + 1} kills", flush=True)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive(), "a client hangs"
    return counts


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4, help="at most 16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(kill_server(options.kills, options.clients, Path(folder), seed=options.seed, progress=True))


if __name__ == "__main__":
    main()
