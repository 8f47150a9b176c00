"""SAC presses a button for the reward of a sentence, from `vlp-compact-45`, a model that never saw this task.

    python examples/sac_button_press.py
    python examples/sac_button_press.py --task drawer-close-v3 --instruction "close the drawer"

It never saw the second, either; docs/results.md says which tasks agents learn from it, and which they do not.

The agent's reward comes from `VLPRewardWrapper` alone; the environment's own success is looked at for evaluation only,
and its reward not at all.
Everything lands in --out: TensorBoard logs, result.json, learning_curve.png, policy.zip and final_policy.mp4. Ctrl-C
keeps what was learned.
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

from vlp_gym import VLPReplayBuffer, VLPRewardCallback, VLPRewardWrapper, load_reward_model, make_metaworld
from vlp_gym.metaworld.env import scripted_policy
from vlp_gym.video import overlay_video
from vlp_gym.viz import plot_learning_curve, plot_reward_curves

WRONG_SENTENCE = "pull the lever up"
HALF = 40  # environment steps after which the half-finished behaviour stands still


@dataclass(frozen=True)
class Options:
    """Train SAC from the reward of a sentence."""

    task: str = "button-press-v3"
    """Meta-World task."""
    instruction: str = "press the button"
    """What the agent is told."""
    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id. vlp-compact-45 never saw this task, vlp-compact did."""
    steps: int = 10_000
    """Decisions of the agent; each holds for --repeat environment steps."""
    seed: int = 0
    """Of the task's placements, the agent and the exploration."""
    episode_steps: int = 150
    """Length of an episode."""
    repeat: int = 5
    """Environment steps that each action is held for."""
    gamma: float = 0.95
    """Discount of a decision's reward; 0.98 suits --repeat 2."""
    eval_every: int = 1_250
    """Decisions between two evaluations."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    scale: float = 1.0
    """Factor on the reward."""
    mode: Literal["sync", "async"] = "async"
    """"async" steps on while the reward model works, and learns from a transition when its reward has come."""
    control: Literal["none", "shuffled"] = "none"
    """"shuffled" pays each step the reward of a random earlier one: an agent that still learns would prove nothing.
    Always with --mode sync."""
    threads: int = 1
    """Torch threads; more rarely helps nets of this size."""
    out: Path | None = None
    """Where the results go; runs/sac-TASK-SEED by default."""


def main(options: Options) -> None:
    """Look at the reward, train, evaluate, and show the result."""
    torch.set_num_threads(options.threads)
    out = options.out or Path("runs") / f"sac-{options.task}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    model = load_reward_model(options.model)
    first_look(options, model, out / "reward_curves.png")

    env = make_env(options, seed=options.seed)
    mode = "sync" if options.control == "shuffled" else options.mode
    env = VLPRewardWrapper(env, options.instruction, model, reward="progress", scale=options.scale, mode=mode)
    if options.control == "shuffled":
        env = ShuffledReward(env, options.seed)
    agent = SAC(
        "MlpPolicy",
        env,
        learning_rate=lambda left: 1e-3 * left,  # falls to 0, so that the last policy is a settled one
        learning_starts=1_000,
        gamma=options.gamma,
        tau=0.01,
        ent_coef="auto_0.05",  # rewards are at most 1: the usual start of 1 would drown them in entropy
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=VLPReplayBuffer,
        tensorboard_log=str(out / "tensorboard"),
        seed=options.seed,
    )
    evaluation = Evaluation(options, out)
    try:
        callbacks = CallbackList([VLPRewardCallback(), evaluation, ProgressBarCallback()])
        agent.learn(options.steps, callbacks, tb_log_name="sac")
    except KeyboardInterrupt:
        print("\nstopped: keeping what was learned")
    evaluation.run()
    evaluation.env.close()
    env.close()

    history = evaluation.history
    title, unit = f"“{options.instruction}”", "decisions of the agent"
    best = (0.0, options.scale)
    plot_learning_curve(
        {options.task: [history]}, out / "learning_curve.png", title=title, xlabel=unit, reward_range=best
    )
    film(options, model, agent, out / "final_policy.mp4")
    result = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "success": history[-1]["success"],
        "minutes": (time.monotonic() - started) / 60,
        "history": history,
    }
    (out / "result.json").write_text(json.dumps(result, indent=2))
    success = history[-1]["success"]
    print(f"success {success:.2f} over {options.eval_episodes} episodes after {agent.num_timesteps:,} decisions")
    print(f"see {out}/learning_curve.png and {out}/final_policy.mp4; tensorboard --logdir {out}/tensorboard")


def make_env(options: Options, **settings: Any) -> gym.Env:
    """The task without any reward of ours."""
    env = make_metaworld(options.task, max_episode_steps=options.episode_steps, **settings)
    return ActionRepeat(env, options.repeat)


class ActionRepeat(gym.Wrapper):
    """Holds each action for some steps of the environment: one rendering, one query and one update for all of them."""

    def __init__(self, env: gym.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> Any:
        """The last of the steps; what the environment paid before it is of no interest here."""
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                break
        return observation, reward, terminated, truncated, info


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other placements, counts the environment's own success, and saves it."""

    def __init__(self, options: Options, out: Path) -> None:
        super().__init__()
        self.options, self.out = options, out
        self.env = make_env(options, seed=options.seed + 1_000, terminate_on_success=True)
        self.history: list[dict[str, float]] = []
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.options.eval_every == 0:
            self.run()
        return True

    def run(self) -> None:
        """Evaluate once, and remember the outcome."""
        if self.history and self.history[-1]["step"] == self.num_timesteps:
            return
        buffer = self.model.replay_buffer
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
            "reward": float(np.mean(buffer.rewards[max(buffer.pos - self.options.eval_every, 0) : max(buffer.pos, 1)])),
            "minutes": (time.monotonic() - self.started) / 60,
        }
        self.history.append(row)
        self.model.save(self.out / "policy.zip")  # what has been learned so far, should the run end here
        self.logger.record("eval/success", row["success"])
        self.logger.dump(self.num_timesteps)
        success, reward, minutes = row["success"], row["reward"], row["minutes"]
        print(f"{self.num_timesteps:>8,} decisions  success {success:.2f}  reward {reward:.3f}  {minutes:.1f} min")


class ShuffledReward(gym.RewardWrapper):
    """The control: the same rewards in a random order."""

    def __init__(self, env: gym.Env, seed: int) -> None:
        super().__init__(env)
        self.seen: list[float] = []
        self.rng = np.random.default_rng(seed)

    def reward(self, reward: Any) -> float:
        """A reward of a random step so far."""
        self.seen.append(float(reward))
        return self.seen[self.rng.integers(len(self.seen))]


def rollout(options: Options, act: Any, model: Any, instruction: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 ``[F, H, W, 3]`` and rewards ``[F]`` of one episode on a placement that training did not see."""
    env = make_env(options, seed=options.seed + 2_000)
    env = VLPRewardWrapper(env, instruction, model, reward="progress", scale=options.scale)
    observation, info = env.reset(seed=0)
    frames, rewards, truncated = [env.render()], [options.scale * info["vlp"]["score"]], False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(act(observation, len(rewards)))
        frames.append(env.render())
        rewards.append(reward)
    env.close()
    return np.stack(frames), np.array(rewards)


def first_look(options: Options, model: Any, path: Path) -> None:
    """What the reward says of an expert, half an expert and random actions, under the right and a wrong sentence."""
    expert = scripted_policy(options.task)
    behaviours = {
        "expert": lambda observation, step: np.clip(expert.get_action(observation), -1, 1),
        "half-finished": lambda observation, step: (
            np.clip(expert.get_action(observation), -1, 1) * (step * options.repeat < HALF)
        ),
        "random": lambda observation, step: np.random.default_rng(step).uniform(-1, 1, 4),
    }
    curves, frames = {}, {}
    for name, act in behaviours.items():
        frames[name], curves[name] = rollout(options, act, model, options.instruction)
    for name, act in behaviours.items():
        curves[f"{name}, “{WRONG_SENTENCE}”"] = rollout(options, act, model, WRONG_SENTENCE)[1]
    wrong = [name for name in curves if WRONG_SENTENCE in name]
    plot_reward_curves(
        curves,
        path,
        title=f"Reward for “{options.instruction}”",
        frames=frames,
        dashed=wrong,
        xlabel="decision of the agent",
        reward_range=(0.0, options.scale),
    )
    print(f"first look at the reward: {path}")


def film(options: Options, model: Any, agent: SAC, path: Path) -> None:
    """An episode of the final policy, with the reward drawn beside it."""
    frames, rewards = rollout(
        options, lambda observation, _: agent.predict(observation, deterministic=True)[0], model,
        options.instruction,
    )  # fmt: skip
    overlay_video(frames, rewards, path, title=options.instruction, reward_range=(0.0, options.scale))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
