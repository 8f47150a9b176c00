"""How far first frames are from a shipped model's training data: other environments, and Meta-World's tasks.

python tests/benchmarks/other_domains.py
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import torch
import tyro
from tqdm import tqdm

from vlp_gym import make_metaworld
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.metaworld.instructions import all_tasks
from vlp_gym.models.protocol import NOVEL

OTHERS = (
    "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "Acrobot-v1", "HalfCheetah-v5", "Ant-v5", "Hopper-v5",
    "Humanoid-v5", "Reacher-v5", "Pusher-v5", "InvertedPendulum-v5", "Swimmer-v5", "FrozenLake-v1", "CliffWalking-v1",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Measure and print."""

    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id."""
    tasks: tuple[str, ...] = all_tasks()
    """Meta-World tasks."""
    resets: int = 2
    """First frames of each."""


def main(options: Options) -> None:
    """Print the distances, farthest first, and which are above the limit of the warning."""
    torch.set_num_threads(1)
    model = GuardedModel(options.model)
    kinds = {"other": OTHERS, "Meta-World": options.tasks}
    for kind, names in kinds.items():
        found = {name: _distance(model, name, kind == "other", options.resets) for name in tqdm(names, desc=kind)}
        for name, distance in sorted(found.items(), key=lambda item: -item[1]):
            print(f"{name:30} {distance:5.2f}")
        far = sum(distance > NOVEL for distance in found.values())
        print(f"{kind}: {far} of {len(found)} are farther than {NOVEL:g}")


def _distance(model: GuardedModel, name: str, other: bool, resets: int) -> float:
    """The largest of the first frames."""
    env = gym.make(name, render_mode="rgb_array") if other else make_metaworld(name)
    found = []
    for seed in range(resets):
        env.reset(seed=seed)
        frame = torch.from_numpy(env.render().copy())[None]
        found.append(float(model.novelty(model.encode_frames(frame, where=name), where=name)))
    env.close()
    return max(found)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
