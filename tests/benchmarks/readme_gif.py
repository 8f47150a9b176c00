"""The moving picture of the README: Meta-World's scripted expert on a task that the model never saw, and its reward.

python tests/benchmarks/readme_gif.py --out docs/pictures/rollout.gif
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from vlp_gym import VLPRewardWrapper, make_metaworld
from vlp_gym.metaworld.env import scripted_policy
from vlp_gym.video import overlay_video


@dataclass(frozen=True)
class Options:
    """Draw one rollout beside the reward that the wrapper paid for it."""

    task: str = "drawer-close-v3"
    """Meta-World task; vlp-compact-45 never saw this one."""
    instruction: str = "close the drawer"
    """The sentence that is rewarded."""
    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id."""
    seed: int = 0
    """Seeds the placement of the objects."""
    steps: int = 300
    """Steps at most."""
    beyond: int = 15
    """Steps after the first success."""
    every: int = 2
    """Steps between two frames of the picture."""
    size: int = 224
    """Side of the rendered frames, in pixels."""
    height: int = 240
    """Height of the picture, in pixels."""
    fps: float = 12.0
    """Frames a second."""
    out: Path = Path("docs/pictures/rollout.gif")
    """The .gif or .mp4 to write."""


def main(options: Options) -> None:
    """Roll out, draw, and print what the reward was."""
    policy = scripted_policy(options.task)
    env = VLPRewardWrapper(
        make_metaworld(options.task, seed=options.seed, size=options.size), options.instruction, options.model
    )
    observation, info = env.reset(seed=options.seed)
    frames, rewards, success = [env.render()], [info["vlp"]["score"]], []
    while len(success) < options.steps and sum(success) <= options.beyond:
        action = np.clip(policy.get_action(observation), -1, 1).astype(np.float32)
        observation, reward, _, _, info = env.step(action)
        success.append(bool(info["success"]))
        frames.append(env.render())
        rewards.append(reward)
    env.close()
    shown = slice(None, None, options.every)
    overlay_video(
        np.stack(frames)[shown], rewards[shown], options.out,
        fps=options.fps, title=options.instruction, height=options.height,
    )  # fmt: skip
    print(f"{len(success)} steps, success {any(success)}; reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last")
    print(f"written: {options.out} ({options.out.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main(tyro.cli(Options))
