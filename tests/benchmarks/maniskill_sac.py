"""SAC on a ManiSkill task that is paid by a sentence, or by the environment's own reward.

python tests/benchmarks/maniskill_sac.py --task PushCube --instruction "push the cube onto the target" --model runs/mine
python tests/benchmarks/maniskill_sac.py --task PushCube --reward dense

ManiSkill wants an environment of its own: pip install "vlp_gym[maniskill,train]" stable-baselines3
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from vlp_gym import VLPReplayBuffer, VLPRewardCallback, VLPRewardWrapper
from vlp_gym.maniskill.env import make_maniskill
from vlp_gym.storage import write_atomic

EPISODE_STEPS = 50  # ManiSkill's own


@dataclass(frozen=True)
class Options:
    """Train SAC, and count the evaluation episodes that succeed at any step, and at the last one."""

    task: str = "PushCube"
    """A task of ManiSkill that `vlp-gym collect maniskill` knows."""
    reward: Literal["model", "dense", "sparse"] = "model"
    """What SAC is paid: the model's progress under the sentence, or the environment's own reward, normalized."""
    instruction: str = "push the cube onto the target"
    """The sentence."""
    model: str = "runs/mine"
    """A reward model that was trained on the task."""
    steps: int = 4_000
    """Decisions of the agent."""
    repeat: int = 4
    """Environment steps of a decision."""
    gradient_steps: int = 2
    """Updates after each decision."""
    gamma: float = 0.8
    """Discount."""
    eval_every: int = 500
    """Decisions between two evaluations."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    size: int = 224
    """Side of the frames, pixels; smaller ones are so grainy that the model does not know them, and it says so."""
    seed: int = 0
    """Seeds the agent."""
    out: Path | None = None
    """Where result.json goes; runs/TASK-REWARD-SEED by default."""


class Repeat(gym.Wrapper):
    """Repeats each action; the reward is the mean over its steps, and only the time limit ends an episode."""

    def __init__(self, env: gym.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        rewards = []
        for _ in range(self.times):
            observation, reward, _, truncated, info = self.env.step(action)
            rewards.append(float(reward))
            if truncated:
                break
        return observation, float(np.mean(rewards)), False, truncated, info


def make(options: Options) -> gym.Env:
    """The task, its hand moved by differences of its place, from the camera of our collections."""
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper

    env = make_maniskill(
        options.task,
        size=options.size,
        max_episode_steps=EPISODE_STEPS,
        control_mode="pd_ee_delta_pos",
        reward_mode="sparse" if options.reward == "sparse" else "normalized_dense",
    )
    return Repeat(CPUGymWrapper(env, ignore_terminations=True), options.repeat)


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other episodes."""

    def __init__(self, options: Options, out: Path) -> None:
        super().__init__()
        self.options, self.out, self.env = options, out, make(options)
        self.history: list[dict[str, float]] = []
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.options.eval_every == 0:
            self.run()
        return True

    def run(self) -> None:
        """Evaluate, and write what is known until now."""
        successes = [self._episode(10_000 + number) for number in range(self.options.eval_episodes)]
        self.history.append(
            {
                "step": self.num_timesteps,
                "success_once": float(np.mean([any(seen) for seen in successes])),
                "success_at_end": float(np.mean([seen[-1] for seen in successes])),
                "minutes": (time.monotonic() - self.started) / 60,
            }
        )
        settings = {name: str(x) if isinstance(x, Path) else x for name, x in asdict(self.options).items()}
        result = {"options": settings, "history": self.history}
        write_atomic(self.out / "result.json", json.dumps(result, indent=2).encode())
        print(f"\n{self.history[-1]}", flush=True)

    def _episode(self, seed: int) -> list[bool]:
        observation, _ = self.env.reset(seed=seed)
        successes, truncated = [], False
        while not truncated:
            action, _ = self.model.predict(observation, deterministic=True)
            observation, _, _, truncated, info = self.env.step(action)
            successes.append(bool(info["success"]))
        return successes


def main(options: Options) -> None:
    """Train and evaluate."""
    torch.set_num_threads(1)
    out = options.out or Path("runs") / f"{options.task}-{options.reward}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    env, callbacks, buffer = make(options), [Evaluation(options, out), ProgressBarCallback()], None
    if options.reward == "model":
        env = VLPRewardWrapper(env, options.instruction, options.model, reward="progress")
        callbacks, buffer = [VLPRewardCallback(), *callbacks], VLPReplayBuffer
    agent = SAC(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=500,
        gamma=options.gamma,
        tau=0.01,
        gradient_steps=options.gradient_steps,
        ent_coef="auto_0.05",  # rewards are at most 1: the usual start of 1 would drown them in entropy
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=buffer,
        seed=options.seed,
    )
    agent.learn(options.steps, CallbackList(callbacks))
    env.close()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
