"""Steps a second of environments with late rewards, against the same environments that only render."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv

from tests.benchmarks.measure import alternate
from tests.gpu.devices import seconds
from tests.gpu.models import SENTENCE
from tests.gpu.report import Figure, of_many
from tests.gpu.scenes import first_that_renders, make_rendered, make_scene
from tests.gpu.sizes import Size
from vlp_gym.wrappers import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames

AIM = 0.95
"""Of wrapped / bare steps a second, as on the CPU."""


def environment(size: Size, device: str) -> Iterator[Figure]:
    """`vlp-compact` on the device pays one environment, and a vector of worker processes."""
    scene, reasons = first_that_renders(size.scenes, size.pixels)
    gl = f", MUJOCO_GL={os.environ.get('MUJOCO_GL')}" if scene != "drawn" else ""
    yield Figure("environment", scene + gl)
    if reasons:
        yield Figure("environments that do not render here", reasons)
    for count in size.scene_envs:
        bare, wrapped = (_single if count == 1 else partial(_vector, count))(scene, size.pixels, device)
        try:
            a, b = alternate(_steps(wrapped, size, device), _steps(bare, size, device), size.blocks)
            twin, again = alternate(_steps(bare, size, device), _steps(bare, size, device), max(size.blocks // 2, 1))
            stats, late = wrapped.stats(), wrapped.latencies()
        finally:
            wrapped.close()
            bare.close()
        name = f"{count} environment{'s' * (count > 1)}"
        yield of_many(f"{name}, bare", count / b, "steps/s")
        yield of_many(f"{name}, late rewards", count / a, "steps/s")
        yield of_many(f"{name}, late rewards / bare", b / a, aim=AIM)
        yield of_many(f"{name}, bare / bare (A/A)", again / twin)
        yield Figure(f"{name}, a reward comes after, median", 1e3 * late["latency_p50_s"], "ms")
        yield Figure(f"{name}, a reward comes after, 99 %", 1e3 * late["latency_p99_s"], "ms")
        yield Figure(f"{name}, rewards that did not come", stats["submitted"] - stats["delivered"], at_most=0)


def _single(scene: str, pixels: int, device: str) -> tuple[Any, Any]:
    wrapped = VLPRewardWrapper(make_scene(scene, pixels), SENTENCE, "vlp-compact", mode="async", device=device)
    return make_rendered(scene, pixels), wrapped


def _vector(count: int, scene: str, pixels: int, device: str) -> tuple[Any, Any]:
    """Workers are spawned: CUDA does not survive a fork."""
    bare = AsyncVectorEnv([partial(make_rendered, scene, pixels)] * count, context="spawn")
    captured = AsyncVectorEnv(capture_frames([partial(make_scene, scene, pixels)] * count), context="spawn")
    return bare, VLPVectorRewardWrapper(captured, SENTENCE, "vlp-compact", mode="async", device=device)


def _steps(env: Any, size: Size, device: str) -> Callable[[], float]:
    """What measures the seconds a step from a reset on, until the last reward is there."""
    rng = np.random.default_rng(0)

    def walk() -> None:
        for _ in range(size.scene_steps):
            env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        if hasattr(env, "flush"):
            env.flush()

    def once() -> float:
        env.reset(seed=0)
        if hasattr(env, "flush"):
            env.flush()
        return seconds(walk, 1, device) / size.scene_steps

    return once
