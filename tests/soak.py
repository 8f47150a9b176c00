"""A long run under faults: is any transition lost, doubled, given another's reward, or sampled while it waits?

python -m tests.soak --steps 5_000_000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from tests.late import SENTENCE, SeenEnv
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import QueryError
from vlp_gym.integrations.sb3.buffers import VLPReplayBuffer
from vlp_gym.integrations.sb3.source import RewardSource
from vlp_gym.models.protocol import Scores
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import ticket_in
from vlp_gym.testing import PaintedModel
from vlp_gym.wrappers import VLPRewardWrapper

EPISODES = 1024
"""Episodes that can be told apart by their paint; then the numbers start again."""


class FaultyWorld:
    """When something goes wrong, and what it has spoiled."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.rng = rate, np.random.default_rng(seed)
        self.faults: dict[str, int] = {}
        self.spoiled: set[tuple[int, int]] = set()
        """(env, episode) of which the model has failed a frame: what waits there has no reward."""

    def now(self, fault: str) -> bool:
        """Whether this fault happens here."""
        if self.rng.random() >= self.rate:
            return False
        self.faults[fault] = self.faults.get(fault, 0) + 1
        return True


class SoakEnv(SeenEnv):
    """Raises in step and render, is interrupted, and renders nonsense, each at the rate of the world."""

    def __init__(self, env: int, world: FaultyWorld) -> None:
        super().__init__([int(length) for length in world.rng.integers(1, 60, EPISODES)], env=env)
        self.world = world

    def reset(self, **options: Any) -> Any:
        """The numbers of the episodes start again where the paint ends."""
        if self.episode == EPISODES - 1:
            self.episode = -1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        """One step, or a fault."""
        if self.world.now("step raises"):
            raise OSError("the simulator is gone")
        if self.world.now("interrupted"):
            raise KeyboardInterrupt
        return super().step(action)

    def render(self) -> Any:
        """The painted frame, or a fault."""
        if self.elapsed and self.world.now("render raises"):
            raise OSError("no GL context")
        return super().render()


class SoakModel(PaintedModel):
    """Raises, answers NaN, or takes its time."""

    def __init__(self, world: FaultyWorld) -> None:
        super().__init__()
        self.wrappers: list[VLPRewardWrapper] = []
        self.world = FaultyWorld(world.rate, 1)  # of the worker thread alone: generators are not to be shared
        self.world.spoiled = world.spoiled

    def score(self, frames: Any, text: Any, mask: Any) -> Scores:
        """The painted values, or a fault."""
        self.windows.clear()
        if self.world.now("slow"):
            time.sleep(0.01)
        raises, nan = self.world.now("model raises"), self.world.now("NaN")
        if raises or nan:
            codes = (frames[:, -1, 0, 0] * (1 << 24)).long().tolist()
            for code in codes if raises else codes[:1]:
                env, painted = code >> 20, code >> 10 & EPISODES - 1
                number, newest, _ = self.wrappers[env].ticket
                self.world.spoiled.add((number, newest - (newest - painted) % EPISODES))
        if raises:
            raise ZeroDivisionError("division by zero")
        if nan:
            frames = frames.clone()
            frames[0] = float("nan")
        return super().score(frames, text, mask)


class Judge:
    """Compares what is delivered with what was given out."""

    def __init__(self) -> None:
        self.open: dict[Ticket, float] = {}
        self.newest: dict[int, Ticket] = {}
        self.counts = dict.fromkeys(("given out", "delivered", "never stored", "doubled", "misattributed"), 0)

    def given(self, ticket: Ticket | None, painted: float) -> None:
        """A transition has got to the agent."""
        assert ticket is not None
        self.open[ticket] = painted
        self.counts["given out"] += 1

    def delivered(self, index: int, delivery: Delivery) -> None:
        """A reward has come."""
        ticket = delivery.ticket
        if ticket <= self.newest.get(ticket.env, Ticket(ticket.env, -1, 0)):
            self.counts["doubled"] += 1
        self.newest[ticket.env] = ticket
        if ticket not in self.open:
            self.counts["never stored"] += 1  # another environment of its row has raised
            return
        self.counts["delivered"] += 1
        self.counts["misattributed"] += self.open.pop(ticket) != delivery.reward


def soak(
    steps: int,
    *,
    rate: float = 1e-3,
    num_envs: int = 4,
    seed: int = 0,
    progress: bool = False,
    place: Callable[[SoakModel], Any] = lambda model: model,
) -> dict[str, int]:
    """Step, store and sample under faults.

    Args:
        steps: transitions.
        rate: of each fault, a step.
        num_envs: wrappers on one engine.
        seed: of faults and episodes.
        progress: show a bar.
        place: puts the model on a device; the engine asks what it returns.

    Returns:
        Counts; "lost", "doubled", "misattributed" and "sampled wrong" must be 0.
    """
    world = FaultyWorld(rate, seed)
    model = SoakModel(world)
    engine = QueryEngine(place(model), mode="async", slots=64)
    wrappers = [VLPRewardWrapper(SoakEnv(env, world), SENTENCE, engine) for env in range(num_envs)]
    model.wrappers += wrappers
    venv = DummyVecEnv([lambda wrapper=wrapper: wrapper for wrapper in wrappers])
    buffer = VLPReplayBuffer(500 * num_envs, venv.observation_space, venv.action_space, "cpu", n_envs=num_envs)
    judge = Judge()
    sampled = wrong = rows = 0
    observation = venv.reset()
    source = RewardSource(venv, judge.delivered)
    buffer.attach(source)
    source.take_late_rewards()
    actions = np.zeros((num_envs, 1), np.float32)
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        while rows * num_envs < steps:
            try:
                after, rewards, dones, infos = venv.step(actions)
                seen = [
                    info["terminal_observation"] if done else row
                    for info, done, row in zip(infos, dones, after, strict=True)
                ]
                for info, row in zip(infos, seen, strict=True):
                    judge.given(ticket_in(info["vlp"]), float(row[0]))
                buffer.add(observation, np.stack(seen), actions, rewards, dones, infos)
                observation = after
                rows += 1
                bar.update(num_envs)
                if rows % 4 == 0:
                    batch = buffer.sample(32)
                    sampled += 32
                    wrong += int((batch.rewards != batch.next_observations).sum())
            except (QueryError, OSError, KeyboardInterrupt):
                observation = _reset(venv)
                source.take_late_rewards()
    while True:
        try:
            buffer.settle()
            break
        except QueryError:
            pass
    spoiled = [ticket for ticket in judge.open if (ticket.env, ticket.episode) in world.spoiled]
    stats = engine.stats()
    assert stats["submitted"] == sum(count for name, count in stats.items() if name != "submitted"), stats
    assert stats["pending"] == 0, stats
    books = buffer.stats()
    assert books["submitted"] == sum(count for name, count in books.items() if name != "submitted"), books
    faults = {**world.faults, **model.world.faults}
    result = {
        **judge.counts,
        "without a reward, for the model failed": len(spoiled),
        "lost": len(judge.open) - len(spoiled),
        "sampled": sampled,
        "sampled wrong": wrong,
        **{f"faults: {name}": count for name, count in faults.items()},
        **{f"engine: {name}": count for name, count in stats.items()},
        **{f"buffer: {name}": count for name, count in books.items()},
    }
    venv.close()
    engine.close()
    return result


def _reset(venv: DummyVecEnv) -> Any:
    while True:
        try:
            return venv.reset()
        except (QueryError, OSError):
            pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000_000, help="transitions")
    parser.add_argument("--rate", type=float, default=1e-3, help="of each fault, a step")
    parser.add_argument("--seed", type=int, default=0, help="of faults and episodes")
    options = parser.parse_args()
    started = time.monotonic()
    counts = soak(options.steps, rate=options.rate, seed=options.seed, progress=True)
    print(json.dumps({**counts, "seconds": round(time.monotonic() - started)}, indent=2))
