"""How much each part does: in full on a GPU, small on a CPU in the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The numbers of all parts.

    Attributes:
        envs: painted environments on one engine.
        episodes: episodes of each of them, of 30 steps on average.
        fault_every: one of this many frames, and one of this many batches, makes the painted model fail.
        transitions: the least number that must be scored, in each mode and in both; timing decides what faults take.
        soak_steps: transitions that go into SB3's replay buffer under faults.
        backbone: open_clip architecture of VLP.
        heads: attention heads of VLP.
        pixels: side of a rendered frame.
        blocks: blocks of A B B A.
        frames: frames in one measurement of throughput.
        batches: batch sizes to try.
        engine_envs: environments whose frames fill the engine's batches.
        scenes: rendering environments, the first that works is taken.
        scene_envs: numbers of environments that step side by side.
        scene_steps: steps in one measurement.
        opened: wrappers and engines that are opened and closed.
        settled: openings after which PyTorch has filled its streams and caches, and memory must not grow.
        windows: windows in one forward pass of VLP and SPUR.
        pairs: pairs of videos in one training step of VLP and SPUR.
        steps: timed forward passes and training steps.
        qwen: "3B" builds Qwen2.5-VL as large as the published one, "tiny" a tiny one.
    """

    envs: int = 16
    episodes: int = 260
    fault_every: int = 500
    transitions: int = 100_000
    soak_steps: int = 10_000
    backbone: str = "ViT-B-16"
    heads: int = 16
    pixels: int = 224
    blocks: int = 4
    frames: int = 512
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    engine_envs: int = 64
    scenes: tuple[str, ...] = ("metaworld", "gymnasium", "drawn")
    scene_envs: tuple[int, ...] = (1, 16)
    scene_steps: int = 100
    opened: int = 200
    settled: int = 40
    windows: int = 16
    pairs: int = 4
    steps: int = 5
    qwen: str = "3B"


FULL = Size()
SMALL = Size(
    envs=4, episodes=24, fault_every=50, transitions=700, soak_steps=400, backbone="mini-vit", heads=4, pixels=32,
    blocks=1, frames=16, batches=(1, 4), engine_envs=4, scenes=("gymnasium", "drawn"), scene_envs=(1, 2), scene_steps=5,
    opened=6, settled=3, windows=2, pairs=2, steps=1, qwen="tiny",
)  # fmt: skip
SIZES = {"full": FULL, "small": SMALL}
