"""What late rewards cost and gain: the asynchronous engine against bare loops, side by side in one run.

python tests/benchmarks/engine.py --out runs/bench
python tests/benchmarks/engine.py --only throughput cached
"""

from __future__ import annotations

import json
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
from measure import alternate, machine, spread, timed, window_costs
from tqdm import tqdm

from vlp_gym import VLPRewardWrapper, load_reward_model, make_metaworld
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.engine.windows import window_indices
from vlp_gym.frames.gl import choose_gl_backend
from vlp_gym.models.protocol import ContextualModel, RewardModel, Scores
from vlp_gym.storage import write_atomic
from vlp_gym.testing import PaintedEnv, PaintedModel


@dataclass(frozen=True)
class Options:
    """Measure the engine; the first section of each name that has a bar in the project's plan."""

    only: tuple[str, ...] = ()
    """Sections to run; all by default: environment, throughput, cached, paper_loop, latency, learner, leaks."""
    task: str = "button-press-v3"
    """Meta-World task."""
    instruction: str = "press the button"
    """For the rewards."""
    model: str = "vlp-compact"
    """Reward model."""
    blocks: int = 5
    """Blocks of A B B A."""
    steps: int = 60
    """Steps of each measurement within a block."""
    threads: int = 1
    """Torch threads of the main thread and of the worker."""
    backbone: str = "ViT-B-16"
    """open_clip backbone of the token-level model, with random weights."""
    out: Path = Path("runs/bench")
    """Where engine.json goes."""


def main(options: Options) -> None:
    """Measure what was asked for and print a table."""
    choose_gl_backend()
    torch.set_num_threads(options.threads)
    sections = {
        section.__name__: section for section in (environment, throughput, cached, paper_loop, latency, learner, leaks)
    }
    unknown = set(options.only) - set(sections)
    if unknown:
        raise SystemExit(f"--only: expected some of {sorted(sections)}, got {sorted(unknown)}")
    path = options.out / "engine.json"
    result: dict[str, Any] = json.loads(path.read_text()) if options.only and path.exists() else {}
    result |= {"machine": machine(), "n": 2 * options.blocks}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, section in tqdm(sections.items(), desc="benchmarks"):
        if not options.only or name in options.only:
            result |= section(options)
            write_atomic(path, json.dumps(result, indent=2).encode())
    for name, value in result.items():
        print(f"{name:60} {value}")


class StubModel(PaintedModel):
    """An encoder of fixed cost: so many products of matrices for each frame, which need the processor, not the GIL."""

    def __init__(self, cost_s: float) -> None:
        super().__init__()
        self._matrix = torch.randn(256, 256) / 16
        once = min(timed(lambda: self._matrix @ self._matrix, 50) for _ in range(5))
        self._products = max(round(cost_s / once), 1)

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """The painted value, later."""
        for _ in range(self._products * len(frames)):
            self._matrix @ self._matrix
        return super().encode_frames(frames)


def environment(options: Options) -> dict[str, Any]:
    """Steps a second of the wrapped environment against the bare rendering one, all rewards delivered."""
    bare = make_metaworld(options.task, size=224)
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}

    def act() -> np.ndarray[Any, Any]:
        return rng.uniform(-1, 1, 4).astype(np.float32)

    def run_bare() -> float:
        bare.reset(seed=0)
        bare.render()

        def step() -> None:
            bare.step(act())
            bare.render()

        return timed(step, options.steps)

    models: dict[str, RewardModel] = {"stub 5 ms": StubModel(5e-3), options.model: load_reward_model(options.model)}
    for name, model in models.items():
        for mode in ("async", "sync"):
            env = make_metaworld(options.task, size=224)
            wrapped = VLPRewardWrapper(env, options.instruction, model, mode=mode)  # type: ignore[arg-type]

            def run_wrapped(wrapped: Any = wrapped) -> float:
                wrapped.reset(seed=0)
                wrapped.flush()
                started = time.perf_counter()
                delivered = 0
                for _ in range(options.steps):
                    wrapped.step(act())
                    delivered += len(wrapped.poll()) if wrapped.late else 1
                delivered += len(wrapped.flush())
                assert delivered == options.steps
                return (time.perf_counter() - started) / options.steps

            a, b = alternate(run_wrapped, run_bare, options.blocks)
            result[f"env steps/s, {mode} with {name} / bare"] = spread(b / a)
            wrapped.close()
    twin_a, twin_b = alternate(run_bare, run_bare, options.blocks)
    bare.close()
    return {**result, "env steps/s, bare / bare (A/A)": spread(twin_b / twin_a), "bare env steps/s": spread(1 / twin_a)}


def throughput(options: Options) -> dict[str, Any]:
    """Frames a second from host uint8: through the engine, and in a bare loop over the model at its best batch."""
    model: Any = load_reward_model(options.model)
    frames = np.random.default_rng(0).integers(0, 256, (128, 224, 224, 3), np.uint8)
    text = model.encode_text([options.instruction])
    mask = torch.ones(len(frames), model.window, dtype=torch.bool)

    @torch.inference_mode()
    def bare(batch: int) -> float:
        started = time.perf_counter()
        for start in range(0, len(frames), batch):
            tokens = model.encode_frames(torch.from_numpy(frames[start : start + batch]))
            seen = model.encode_in_context(tokens, tokens)
            windows = seen[:, None].expand(-1, model.window, -1, -1).contiguous()
            model.score_in_context(windows, text.expand(len(seen), -1, -1), mask[: len(seen)]).preference.tolist()
        return (time.perf_counter() - started) / len(frames)

    costs = {batch: min(bare(batch) for _ in range(3)) for batch in (1, 2, 4, 8, 16, 32)}
    best = min(costs, key=costs.__getitem__)
    engine = QueryEngine(model, mode="async", max_batch=best, slots=4 * max(best, 16), threads=options.threads)
    envs = [engine.add_env() for _ in range(16)]
    encoded = engine.encode_text(options.instruction)
    episodes = iter(range(10**6))

    def through() -> float:
        episode = next(episodes)
        for env in envs:
            engine.begin(env, episode, encoded)
        started = time.perf_counter()
        answered = 0
        for step in range(len(frames) // len(envs)):
            tickets = [Ticket(env, episode, step) for env in envs]
            engine.submit(tickets, frames[step * len(envs) : (step + 1) * len(envs)])
            answered += len(engine.poll())
        answered += len(engine.flush())
        assert answered == len(frames)
        return (time.perf_counter() - started) / len(frames)

    through(), bare(best)
    a, b = alternate(through, lambda: bare(best), options.blocks)
    twin_a, twin_b = alternate(lambda: bare(best), lambda: bare(best), options.blocks)
    engine.close()
    return {
        "best batch of the bare model loop": best,
        "bare model loop, frames/s": spread(1 / b),
        "frames/s, engine / bare model loop": spread(b / a),
        "frames/s, bare / bare (A/A)": spread(twin_b / twin_a),
    }


def cached(options: Options) -> dict[str, Any]:
    """Seconds a step: the whole window encoded again, against the newest frame alone, for equal scores."""
    from vlp_gym.models.backbones.open_clip import OpenClipBackbone
    from vlp_gym.models.vlp import VLPModel

    torch.manual_seed(0)
    models: dict[str, tuple[Any, int]] = {
        f"pooled ({options.model})": (load_reward_model(options.model), options.steps // 4),
        f"token-level (vlp, {options.backbone})": (VLPModel(OpenClipBackbone(options.backbone, None)).eval(), 1),
    }
    result = {}
    for name, (model, times) in models.items():
        for envs, window in [(envs, window) for envs in ((1, 16) if times > 1 else (1,)) for window in (8, 16)]:
            text = model.encode_text([options.instruction])
            repeats = times if envs == 1 else max(times // 8, 1)
            naive, newest = window_costs(model, text, envs, window, repeats, options.blocks)
            result[f"cost a step, naive / cached, {name}, T={window}, envs={envs}"] = spread(naive / newest)
            result[f"cached ms a step, {name}, T={window}, envs={envs}"] = spread(newest * 1e3)
    return result


def paper_loop(options: Options) -> dict[str, Any]:
    """Collection: ours, against a loop that waits at every step and encodes the window again, one window at a time."""
    model = load_reward_model(options.model)
    ours = VLPRewardWrapper(make_metaworld(options.task, size=224), options.instruction, model, mode="async")
    theirs = {
        quality: make_metaworld(options.task, size=224, quality=quality)  # type: ignore[arg-type]
        for quality in ("fast", "default")
    }
    rng = np.random.default_rng(0)
    text = model.encode_text([options.instruction])
    few = max(options.steps // 4, 5)

    def late() -> float:
        ours.reset(seed=0)
        ours.flush()
        started = time.perf_counter()
        for _ in range(few):
            ours.step(rng.uniform(-1, 1, 4).astype(np.float32))
        ours.flush()
        return (time.perf_counter() - started) / few

    @torch.inference_mode()
    def blocking(env: Any) -> float:
        env.reset(seed=0)
        frames = [env.render() for _ in range(model.window)]
        started = time.perf_counter()
        for _ in range(few):
            env.step(rng.uniform(-1, 1, 4).astype(np.float32))
            frames.append(env.render())
            indices, mask = window_indices(len(frames), model.window, model.history)
            tokens = model.encode_frames(torch.from_numpy(np.stack([frames[index] for index in indices])))
            model.score(tokens[None], text, torch.from_numpy(mask)[None]).preference.item()
        return (time.perf_counter() - started) / few

    result = {}
    for quality, env in theirs.items():
        a, b = alternate(late, lambda env=env: blocking(env), options.blocks)  # type: ignore[misc]
        result[f"collected steps/s, ours / blocking loop with {quality} rendering"] = spread(b / a)
        env.close()
    ours.close()
    return result


class TimedModel:
    """Remembers how long each batch took."""

    def __init__(self, model: ContextualModel) -> None:
        self.model, self.service_s = model, []
        self.window, self.history, self.frame_size = model.window, model.history, model.frame_size

    def encode_text(self, instructions: Sequence[str]) -> torch.Tensor:
        """As the model does."""
        return self.model.encode_text(instructions)

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """As the model does; starts the clock."""
        self._started = time.perf_counter()
        return self.model.encode_frames(frames)

    def encode_in_context(self, frames: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """As the model does."""
        return self.model.encode_in_context(frames, first)

    def score(self, frames: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> Scores:
        """As the model does."""
        return self.model.score(frames, text, mask)

    def score_in_context(self, frames: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> Scores:
        """As the model does; stops the clock."""
        scores = self.model.score_in_context(frames, text, mask)
        self.service_s.append(time.perf_counter() - self._started)
        return scores


def latency(options: Options) -> dict[str, Any]:
    """From `submit` to the answer, while an environment is stepped and rendered in the main thread."""
    model = TimedModel(load_reward_model(options.model))  # type: ignore[arg-type]
    result: dict[str, Any] = {}
    for max_wait_s in (0.0, 0.02):
        ratios = []
        for _ in range(options.blocks):
            engine = QueryEngine(model, mode="async", max_wait_s=max_wait_s, threads=options.threads)
            env = VLPRewardWrapper(make_metaworld(options.task, size=224), options.instruction, engine)
            env.reset(seed=0)
            env.take_late_rewards()
            model.service_s.clear()
            for _ in range(4 * options.steps):
                env.step(env.action_space.sample())
            env.flush()
            p99 = engine.latencies()["latency_p99_s"]
            ratios.append(p99 / (max_wait_s + float(np.median(model.service_s))))
            env.close()
            engine.close()
        result[f"p99 latency / (max_wait + batch service), max_wait {max_wait_s * 1e3:g} ms"] = spread(np.array(ratios))
    return result


def learner(options: Options) -> dict[str, Any]:
    """SAC: gradient steps a second with late rewards, against rewards known at once; and whole steps."""
    model = load_reward_model(options.model)
    late, known = (sac(options, model, mode) for mode in ("async", "sync"))
    whole: list[tuple[float, float]] = []

    def run(agent: Any) -> float:
        update, step = learn(agent, options)
        whole.append((float(agent is late), step))
        return update

    a, b = alternate(lambda: run(late), lambda: run(known), options.blocks)
    steps = {kind: np.array([step for late, step in whole if late == kind]) for kind in (0.0, 1.0)}
    twin_a, twin_b = alternate(lambda: run(known), lambda: run(known), options.blocks)
    for agent in (late, known):
        agent.env.close()
    return {
        "SAC updates/s, late rewards / known at once": spread(b / a),
        "SAC updates/s, known / known (A/A)": spread(twin_b / twin_a),
        "SAC updates/s, known at once": spread(1 / b),
        "SAC steps/s, updates and all, late / known at once": spread(steps[0.0] / steps[1.0]),
        "SAC steps/s, updates and all, known at once": spread(1 / steps[0.0]),
    }


def sac(options: Options, model: Any, mode: str) -> Any:
    """An agent that has learned for a moment."""
    from stable_baselines3 import SAC

    from vlp_gym import VLPReplayBuffer

    env = make_metaworld(options.task, size=224)
    env = VLPRewardWrapper(env, options.instruction, model, mode=mode)  # type: ignore[arg-type]
    settings = {"policy_kwargs": {"net_arch": [256, 256]}, "learning_starts": 50, "seed": 0}
    agent = SAC("MlpPolicy", env, replay_buffer_class=VLPReplayBuffer, **settings)
    learn(agent, options)
    return agent


def learn(agent: Any, options: Options) -> tuple[float, float]:
    """Train for so many steps; seconds an update, and seconds a step altogether, all rewards delivered."""
    from vlp_gym import VLPRewardCallback

    updates, spent = agent._n_updates, 0.0

    def train(*args: Any, **kwargs: Any) -> None:
        nonlocal spent
        started = time.perf_counter()
        type(agent).train(agent, *args, **kwargs)
        spent += time.perf_counter() - started

    agent.train = train
    started = time.perf_counter()
    agent.learn(options.steps, VLPRewardCallback(), reset_num_timesteps=False)
    whole = time.perf_counter() - started
    del agent.train
    return spent / max(agent._n_updates - updates, 1), whole / options.steps


def leaks(options: Options) -> dict[str, Any]:
    """Memory over 100,000 steps, and what 200 wrappers leave behind."""
    process = psutil.Process()
    shared = Path("/dev/shm")

    def left() -> tuple[int, int, int]:
        return threading.active_count(), process.num_fds(), len(list(shared.iterdir())) if shared.exists() else 0

    model = PaintedModel()
    env = VLPRewardWrapper(PaintedEnv([1000]), options.instruction, model, mode="async")

    def walk(steps: int) -> int:
        over = True
        for _ in range(steps):
            if over:
                env.reset()
                env.take_late_rewards()
            over = env.step(0)[2]
            env.poll()
            model.windows.clear()  # the oracle's own memory
        return process.memory_info().rss

    before = walk(10_000)
    after = walk(100_000)
    env.close()
    opened = left()
    for _ in range(200):
        other = VLPRewardWrapper(PaintedEnv(), options.instruction, PaintedModel(), mode="async")
        other.reset()
        other.step(0)
        other.close()
    return {
        "RSS drift over 100,000 steps, percent": round((after - before) / before * 100, 2),
        "threads, file descriptors, shared memory left by 200 wrappers": [
            now - then for now, then in zip(left(), opened, strict=True)
        ],
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
