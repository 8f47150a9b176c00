"""Where the time of a wrapped step goes, and what fast rendering gains; all ratios from one run, in ABBA order.

python tests/benchmarks/speed.py --out runs/bench
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measure import alternate, machine, spread, timed
from scipy.stats import spearmanr

from vlp_gym import VLPRewardWrapper, load_reward_model, make_metaworld
from vlp_gym.metaworld.env import scripted_policy
from vlp_gym.storage import write_atomic


@dataclass(frozen=True)
class Options:
    """Measure rendering, and the wrapped environment against the bare rendering one."""

    task: str = "button-press-v3"
    """Meta-World task."""
    instruction: str = "press the button"
    """For the rewards."""
    model: str = "vlp-compact"
    """Reward model."""
    blocks: int = 6
    """Blocks of A B B A."""
    steps: int = 40
    """Steps of each measurement within a block."""
    threads: int = 1
    """Torch threads."""
    out: Path = Path("runs/bench")
    """Where speed.json goes."""


def main(options: Options) -> None:
    """Measure everything and print a table."""
    torch.set_num_threads(options.threads)
    model = load_reward_model(options.model)
    result: dict[str, Any] = {
        "machine": machine(),
        "n": 2 * options.blocks,
    }
    result |= rendering(options)
    result |= wrapping(options, model)
    result |= reward_agreement(options, model)
    result |= model_cost(options, model)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "speed.json", json.dumps(result, indent=2).encode())
    for name, value in result.items():
        print(f"{name:45} {value}")


def rendering(options: Options) -> dict[str, Any]:
    """Milliseconds a frame at 224 px: ours against Gymnasium's own viewer on the same scene.

    Each in a process of its own: Gymnasium's viewer never makes its GL context current, so that beside ours it would
    draw into our cheaper one and look faster than it is.
    """
    spawn = multiprocessing.get_context("spawn")
    few = max(options.steps // 8, 3)
    with (
        ProcessPoolExecutor(1, spawn, _open_env, (options.task, True)) as ours,
        ProcessPoolExecutor(1, spawn, _open_env, (options.task, False)) as theirs,
    ):
        ours.submit(_render, 2).result(), theirs.submit(_render, 2).result()
        fast, default = alternate(
            lambda: ours.submit(_render, few).result(), lambda: theirs.submit(_render, few).result(), options.blocks
        )
    return {
        "render fast ms": spread(fast * 1e3),
        "render Gymnasium default ms": spread(default * 1e3),
        "render ratio default / fast": spread(default / fast),
    }


def _open_env(task: str, fast: bool) -> None:
    """Of a rendering process: its one environment."""
    global _env
    torch.set_num_threads(1)
    env = make_metaworld(task, size=224)
    env.reset(seed=0)
    _env = env if fast else env.env  # without FastRender the environment renders through Gymnasium's viewer


def _render(times: int) -> float:
    return timed(_env.render, times)


def wrapping(options: Options, model: Any) -> dict[str, Any]:
    """Steps a second, wrapped against bare with rendering."""
    bare = make_metaworld(options.task, size=224)
    wrapped = VLPRewardWrapper(make_metaworld(options.task, size=224), options.instruction, model)
    physics = make_metaworld(options.task, size=224)
    rng = np.random.default_rng(0)

    def bare_step() -> None:
        bare.step(rng.uniform(-1, 1, 4).astype(np.float32))
        bare.render()

    def wrapped_step() -> None:
        wrapped.step(rng.uniform(-1, 1, 4).astype(np.float32))

    def run(env: Any, step: Callable[[], None]) -> float:
        env.reset(seed=0)
        step()
        return timed(step, options.steps)

    a, b = alternate(lambda: run(wrapped, wrapped_step), lambda: run(bare, bare_step), options.blocks)
    twin_a, twin_b = alternate(lambda: run(bare, bare_step), lambda: run(bare, bare_step), options.blocks)
    physics.reset(seed=0)
    only_physics = timed(lambda: physics.step(rng.uniform(-1, 1, 4).astype(np.float32)), options.steps)
    for env in (bare, wrapped, physics):
        env.close()
    return {
        "bare env with rendering steps/s": spread(1 / b),
        "wrapped env steps/s": spread(1 / a),
        "steps/s ratio wrapped / bare": spread(b / a),
        "steps/s ratio bare / bare (A/A)": spread(twin_b / twin_a),
        "physics ms": round(only_physics * 1e3, 2),
    }


def model_cost(options: Options, model: Any) -> dict[str, Any]:
    """Milliseconds to encode one 224 px frame and to score one window."""
    frame = torch.randint(0, 255, (1, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        text = model.encode_text([options.instruction])
        tokens = model.encode_frames(frame)[:, None].expand(-1, model.window, -1, -1).contiguous()
        mask = torch.ones(1, model.window, dtype=torch.bool)
        encode = [timed(lambda: model.encode_frames(frame), 10) for _ in range(2 * options.blocks)]
        score = [timed(lambda: model.score(tokens, text, mask), 10) for _ in range(2 * options.blocks)]
    return {"encode one frame ms": spread(np.array(encode) * 1e3), "score one window ms": spread(np.array(score) * 1e3)}


def reward_agreement(options: Options, model: Any) -> dict[str, Any]:
    """Spearman correlation of the rewards of one rollout rendered fast and by default."""
    rewards = {}
    for quality in ("fast", "default"):
        env = VLPRewardWrapper(make_metaworld(options.task, size=224, quality=quality), options.instruction, model)
        expert = scripted_policy(options.task)
        observation, info = env.reset(seed=0)
        series = [info["vlp"]["score"]]
        for _ in range(options.steps):
            observation, reward, _, _, _ = env.step(np.clip(expert.get_action(observation), -1, 1))
            series.append(reward)
        rewards[quality] = series
        env.close()
    return {"reward rank correlation fast / default": round(float(spearmanr(*rewards.values()).statistic), 4)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
