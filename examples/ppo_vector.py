"""PPO on several environments at once: each renders in a process of its own, one reward model judges them all.

    python examples/ppo_vector.py
    python examples/ppo_vector.py --task window-close-v3 --instruction "close the window" --envs 4

Frames come through shared memory, captured in each environment's own step, so that a terminal frame belongs to the
episode that it ends. Rewards come late; `VLPRewardCallback` sees to it that PPO computes its returns only when all of a
rollout's are there. Everything lands in --out: TensorBoard logs, result.json, learning_curve.png, policy.zip. Ctrl-C
keeps what was learned.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.vec_env import SubprocVecEnv

from vlp_gym import VLPRewardCallback, VLPVecReward, capture_frames, make_metaworld
from vlp_gym.viz import plot_learning_curve


@dataclass(frozen=True)
class Options:
    """Train PPO from the reward of a sentence, on several environments."""

    task: str = "drawer-close-v3"
    """Meta-World task."""
    instruction: str = "close the drawer"
    """What the agent is told."""
    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id. vlp-compact-45 never saw this task."""
    envs: int = 2
    """Environments, each in its own process; one a core."""
    steps: int = 30_000
    """Steps of all environments together."""
    rollout: int = 600
    """Steps of each environment between two updates."""
    eval_every: int = 10
    """Updates between two evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    seed: int = 0
    """Of the task's placements, the agent and the exploration."""
    out: Path | None = None
    """Where the results go; runs/ppo-TASK-SEED by default."""


def main(options: Options) -> None:
    """Train, evaluate, and write down what came of it."""
    torch.set_num_threads(1)
    out = options.out or Path("runs") / f"ppo-{options.task}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    env_fns = [lambda seed=seed: make_env(options, seed) for seed in range(options.seed, options.seed + options.envs)]
    venv = SubprocVecEnv(capture_frames(env_fns), start_method="spawn")
    venv = VLPVecReward(venv, options.instruction, options.model, mode="async")
    agent = PPO(
        "MlpPolicy",
        venv,
        n_steps=options.rollout,
        batch_size=200,
        learning_rate=5e-4,
        gamma=0.98,
        policy_kwargs={"net_arch": [128, 128], "log_std_init": -0.5},
        tensorboard_log=str(out / "tensorboard"),
        seed=options.seed,
        device="cpu",
    )
    evaluation = Evaluation(options, out)
    try:
        agent.learn(options.steps, CallbackList([VLPRewardCallback(), evaluation, ProgressBarCallback()]))
    except KeyboardInterrupt:
        print("\nstopped: keeping what was learned")
    evaluation.run()
    venv.close()
    plot_learning_curve({options.task: [evaluation.history]}, out / "learning_curve.png", title=options.instruction)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    (out / "result.json").write_text(json.dumps({"options": settings, "history": evaluation.history}, indent=2))
    print(f"success {evaluation.history[-1]['success']:.2f} after {agent.num_timesteps:,} steps; see {out}")


def make_env(options: Options, seed: int, **settings: Any) -> gym.Env:
    """The task without any reward of ours."""
    return make_metaworld(options.task, seed=seed, max_episode_steps=150, **settings)


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other placements, counts the environment's own success, and saves it."""

    def __init__(self, options: Options, out: Path) -> None:
        super().__init__()
        self.options, self.out = options, out
        self.env = make_env(options, options.seed + 1_000, terminate_on_success=True)
        self.history: list[dict[str, float]] = []
        self.updates = 0
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.updates += 1
        if self.updates % self.options.eval_every == 0:
            self.run()

    def run(self) -> None:
        """Evaluate once, and remember the outcome."""
        successes = []
        for episode in range(self.options.eval_episodes):
            observation, _ = self.env.reset(seed=episode)
            terminated = truncated = False
            while not (terminated or truncated):
                action, _ = self.model.predict(observation, deterministic=True)
                observation, _, terminated, truncated, _ = self.env.step(action)
            successes.append(float(terminated))
        row = {
            "step": self.num_timesteps,
            "success": float(np.mean(successes)),
            "reward": float(np.mean(self.model.rollout_buffer.rewards)),
            "minutes": (time.monotonic() - self.started) / 60,
        }
        self.history.append(row)
        self.model.save(self.out / "policy.zip")
        self.logger.record("eval/success", row["success"])
        print(f"{self.num_timesteps:>8,} steps  success {row['success']:.2f}  reward {row['reward']:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
