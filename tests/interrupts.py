"""Ctrl-C at any moment of a training: `python -m tests.interrupts --number 100`.

A real SIGINT comes at a random time of `learn`, again and again to the same agent. After each, every row that may be
sampled must hold the reward of its own transition, no ticket may be counted twice or never, and the training must go
on.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import stable_baselines3 as sb3
import torch
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from tests.late import SlowModel, late_venv, rewards_fit, sums_up
from vlp_gym import VLPReplayBuffer, VLPRewardCallback

AGENTS = ("SAC", "PPO")
KINDS = ("separate", "shared", "vector")


class CheckedReplayBuffer(VLPReplayBuffer):
    """Every batch that the agent gets is compared with what is painted."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """A checked batch."""
        samples = super().sample(*args, **kwargs)
        assert (samples.rewards == samples.next_observations).all()
        return samples


class Steps(BaseCallback):
    """Counts steps over all trainings."""

    total = 0

    def _on_step(self) -> bool:
        self.total += 1
        return True


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """SIGINT comes after so many seconds, unless the block ends before."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs that ignore it
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def make(name: str, venv: Any) -> Any:
    """A small agent."""
    network = {"net_arch": [8]}
    if name == "PPO":
        return sb3.PPO("MlpPolicy", venv, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=network)
    options = {"learning_starts": 10, "batch_size": 16, "buffer_size": 200, "policy_kwargs": network}
    return sb3.SAC("MlpPolicy", venv, replay_buffer_class=CheckedReplayBuffer, **options)


def check(agent: Any) -> None:
    """Raise AssertionError unless the agent's buffer is right."""
    buffer = getattr(agent, "replay_buffer", None)
    if buffer is not None:
        assert sums_up(buffer.stats()), buffer.stats()
        assert rewards_fit(buffer)


def interrupted(name: str, kind: str, number: int, *, seed: int = 0, progress: bool = False) -> dict[str, int]:
    """Interrupt a training so often.

    Returns:
        How many interrupts came in a training, and how many steps the agent has made in all.
    """
    rng, came, steps = random.Random(seed), 0, Steps()
    venv = late_venv(kind, 2, model=SlowModel(), lengths=(7, 3, 1, 9, 60))  # at most 1,024 can be painted
    agent = make(name, venv)
    agent.learn(40, callback=[VLPRewardCallback(), steps])
    for _ in tqdm(range(number), disable=not progress, desc=f"{name}, {kind}"):
        try:
            with interrupt_after(rng.uniform(0.001, 0.3)):
                agent.learn(100_000, callback=[VLPRewardCallback(), steps])
        except KeyboardInterrupt:
            came += 1
        torch.set_grad_enabled(True)  # within the end of PyTorch's own `no_grad`, it leaves gradients off
        check(agent)
        began = steps.total
        agent.set_env(agent.get_env())
        agent.learn(20, callback=[VLPRewardCallback(), steps], reset_num_timesteps=bool(rng.getrandbits(1)))
        assert steps.total >= began + 10, "the training does not go on"
        check(agent)
    venv.close()
    return {"interrupts": came, "steps": steps.total}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100, help="interrupts of each agent and kind of environment")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    for agent_name in AGENTS:
        for venv_kind in KINDS:
            counts = interrupted(agent_name, venv_kind, options.number, seed=options.seed, progress=True)
            print(agent_name, venv_kind, counts, f"{time.monotonic() - started:.0f} s", flush=True)
