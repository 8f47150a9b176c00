"""From tasks that were shown to one that was not: a policy learned offline goes on online, paid by a sentence.

    vlp-gym collect metaworld --out data/train
    python examples/unseen_task.py --data data/train
    python examples/unseen_task.py --data data/train --old none    # WSRL: without the old data
    python examples/unseen_task.py --data data/train --start scratch --old none    # to compare with

It works as ReWiND does (Zhang et al., 2025). One policy is told a sentence beside the observation. It learns by
implicit Q-learning from rollouts of other tasks, rewarded by the model under their own sentences. Then SAC goes on with
its networks on the unseen task, for the reward of that task's sentence. Half of each batch is old data, told and
rewarded anew under the new sentence (RLPD). No rollout of the unseen task is looked at; the environment's own success
is for evaluation only, and its reward is not used.
Everything lands in --out: the offline policy, TensorBoard logs, result.json, learning_curve.png, reward_curves.png,
policy.zip and final_policy.mp4. Ctrl-C keeps what was learned, and the offline part goes on where it was broken off.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from tqdm import tqdm

from vlp_gym import VLPRewardCallback, VLPRewardWrapper, load_reward_model, make_metaworld
from vlp_gym.data.shards import shard_tasks, stream_trajectories
from vlp_gym.integrations.sb3 import OldDataReplayBuffer, start_from
from vlp_gym.metaworld.instructions import training_phrasings
from vlp_gym.metaworld.splits import full_name, train_tasks
from vlp_gym.policies import IQL, InstructedData, IQLOptions, Transitions, joined, train
from vlp_gym.video import overlay_video
from vlp_gym.viz import plot_learning_curve, plot_reward_curves

REPEAT = 5  # environment steps that each action is held for: the stride of the data's frames
DISCOUNT = 0.95  # of a decision's reward, offline and online


@dataclass(frozen=True)
class Options:
    """Learn an unseen task from a sentence, after other tasks."""

    task: str = "drawer-close-v3"
    """Meta-World task; its rollouts are left out of the data."""
    instruction: str = "close the drawer"
    """What the agent is told."""
    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id. vlp-compact-45 never saw this task."""
    data: tuple[Path, ...] = (Path("data/train"),)
    """Folders from vlp-gym collect; only the training tasks of VLP's split are read."""
    tasks: tuple[str, ...] = ()
    """Learn offline from these tasks only."""
    tiers: tuple[str, ...] = ("expert", "medium", "random")
    """Learn offline from rollouts of these tiers."""
    per_tier: int = 8
    """Rollouts of each task and tier."""
    offline_steps: int = 15_000
    """Updates of implicit Q-learning."""
    start: Literal["offline", "scratch"] = "offline"
    """"scratch" starts SAC with random networks."""
    old: Literal["half", "none"] = "half"
    """Old data in the batches of SAC."""
    steps: int = 20_000
    """Decisions of the agent online; each holds for five environment steps."""
    warmup: int = 800
    """Decisions before SAC's first update: of the offline policy, or random ones from scratch."""
    updates: int = 1
    """Updates of SAC after a decision."""
    learning_rate: float = 3e-4
    """Of SAC; falls to 0."""
    seed: int = 0
    """Of the task's placements, the networks and the exploration."""
    episode_steps: int = 150
    """Length of an episode in environment steps."""
    eval_every: int = 2_000
    """Decisions between two evaluations."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    mode: Literal["sync", "async"] = "async"
    """"async" steps on while the reward model works, and learns from a transition when its reward has come."""
    out: Path | None = None
    """Where the results go; runs/unseen-TASK-START-OLD-SEED by default."""


def main(options: Options) -> None:
    """Learn offline, look at the policy on the unseen task, learn on online, and show the result."""
    torch.set_num_threads(1)
    out = options.out or Path("runs") / f"unseen-{options.task}-{options.start}-{options.old}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    model = load_reward_model(options.model)
    needs_data = options.start == "offline" or options.old == "half"
    vector, own, relabelled = read(options, model) if needs_data else (sentence_vector(options, model), None, None)
    env = VLPRewardWrapper(
        make_env(options, vector, seed=options.seed), options.instruction, model, reward="progress", mode=options.mode
    )
    scratch = options.start == "scratch"
    agent = SAC(
        "MlpPolicy",
        env,
        learning_rate=lambda left: options.learning_rate * left,
        learning_starts=options.warmup if scratch else 0,
        gamma=DISCOUNT,
        tau=0.01,
        ent_coef="auto_0.05",  # rewards are at most 1: the usual start of 1 would drown them in entropy
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=OldDataReplayBuffer,
        tensorboard_log=str(out / "tensorboard"),
        seed=options.seed,
    )
    if not scratch:
        learner = IQL(IQLOptions(steps=options.offline_steps, discount=DISCOUNT), [options.seed], transitions=own)
        train(learner, out / "offline")
        start_from(agent, learner)
    if options.old == "half":
        agent.replay_buffer.use_old(relabelled)

    curves, frames = {}, {}
    frames["before"], curves["before"] = rollout(options, agent, model, vector)
    evaluation = Evaluation(options, vector, out)
    try:
        callbacks = [VLPRewardCallback(), WarmUp(options.warmup, options.updates), evaluation, ProgressBarCallback()]
        agent.learn(options.steps, CallbackList(callbacks), tb_log_name="sac")
    except KeyboardInterrupt:
        print("\nstopped: keeping what was learned")
    evaluation.run()
    evaluation.env.close()
    env.close()

    history = evaluation.history
    title = f"“{options.instruction}”"
    plot_learning_curve({options.task: [history]}, out / "learning_curve.png", title=title, xlabel="decisions online")
    frames["after"], curves["after"] = rollout(options, agent, model, vector)
    plot_reward_curves(
        curves, out / "reward_curves.png", title=f"Reward for {title}, before and after learning online", frames=frames,
        xlabel="decision of the agent", reward_range=(0.0, 1.0),
    )  # fmt: skip
    overlay_video(
        frames["after"], curves["after"], out / "final_policy.mp4", title=options.instruction, reward_range=(0.0, 1.0)
    )
    result = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "before": history[0]["success"],
        "success": history[-1]["success"],
        "minutes": (time.monotonic() - started) / 60,
        "history": history,
    }
    (out / "result.json").write_text(json.dumps(result, indent=2, default=str))
    print(
        f"success {result['before']:.2f} before, {result['success']:.2f} over {options.eval_episodes} episodes after "
        f"{agent.num_timesteps:,} decisions\nsee {out}/learning_curve.png and {out}/final_policy.mp4"
    )


def read(options: Options, model: Any) -> tuple[np.ndarray, Transitions, Transitions]:
    """The new sentence's vector, and the old data under their own sentences and under the new one."""
    allowed = set(train_tasks("vlp")) & set(shard_tasks(*options.data)) - {full_name(options.task)}
    tasks = [full_name(task) for task in options.tasks] or sorted(allowed)
    if wrong := sorted(set(tasks) - allowed):
        raise SystemExit(f"--tasks: expected training tasks of the data other than --task, got {', '.join(wrong)}")
    phrasings = {task: training_phrasings(task) for task in tasks}
    every = [options.instruction, *(sentence for task in tasks for sentence in phrasings[task])]
    data = InstructedData(model, list(dict.fromkeys(every)))
    seen: Counter[tuple[str, str]] = Counter()
    rng = np.random.default_rng(options.seed)
    blocks = []

    def keep(task: str, tier: str) -> bool:
        seen[task, tier] += 1
        return tier in options.tiers and seen[task, tier] <= options.per_tier

    rollouts = stream_trajectories(*options.data, tasks=tasks, keep=keep)
    for trajectory in tqdm(rollouts, desc="rewarding", unit=" rollouts"):
        sentence = str(rng.choice(phrasings[trajectory.task]))
        blocks.append(data.transitions(trajectory, (sentence, options.instruction)))
    if not blocks:
        raise SystemExit(f"--tiers: expected some that the data have, got {', '.join(options.tiers)}")
    own, relabelled = (joined(block) for block in zip(*blocks, strict=True))
    print(f"{len(own):,} decisions of {len(blocks)} rollouts of {len(tasks)} tasks")
    return data.vectors[options.instruction], own, relabelled


def sentence_vector(options: Options, model: Any) -> np.ndarray:
    """What the agent is told."""
    return InstructedData(model, [options.instruction]).vectors[options.instruction]


def make_env(options: Options, vector: np.ndarray, **settings: Any) -> gym.Env:
    """The task without any reward of ours, and the sentence in its observations."""
    env = make_metaworld(options.task, max_episode_steps=options.episode_steps, **settings)
    return Told(ActionRepeat(env, REPEAT), vector)


class Told(gym.ObservationWrapper):
    """Puts a sentence's vector behind each observation."""

    def __init__(self, env: gym.Env, vector: np.ndarray) -> None:
        super().__init__(env)
        self.vector = vector
        size = env.observation_space.shape[0] + len(vector)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Observation and sentence."""
        return np.concatenate([observation, self.vector]).astype(np.float32)


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


class WarmUp(BaseCallback):
    """No update before the agent has played some decisions of the new task (WSRL, Zhou et al., 2025)."""

    def __init__(self, decisions: int, updates: int) -> None:
        super().__init__()
        self.decisions, self.updates = decisions, updates

    def _on_step(self) -> bool:
        self.model.gradient_steps = self.updates if self.num_timesteps > self.decisions else 0
        return True


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other placements, counts the environment's own success, and saves it."""

    def __init__(self, options: Options, vector: np.ndarray, out: Path) -> None:
        super().__init__()
        self.options, self.out = options, out
        self.env = make_env(options, vector, seed=options.seed + 1_000, terminate_on_success=True)
        self.history: list[dict[str, float]] = []
        self.started = time.monotonic()

    def _on_training_start(self) -> None:
        self.run()

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
        paid = buffer.rewards[max(buffer.pos - self.options.eval_every, 0) : buffer.pos]
        row = {
            "step": self.num_timesteps,
            "success": float(np.mean(successes)),
            **({"reward": float(paid.mean())} if len(paid) else {}),
            "minutes": (time.monotonic() - self.started) / 60,
        }
        self.history.append(row)
        self.model.save(self.out / "policy.zip")  # what has been learned so far, should the run end here
        print(f"{self.num_timesteps:>8,} decisions  success {row['success']:.2f}  {row['minutes']:.1f} min")


def rollout(options: Options, agent: SAC, model: Any, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 ``[F, H, W, 3]`` and rewards ``[F]`` of one episode on a placement that training did not see."""
    env = make_env(options, vector, seed=options.seed + 2_000)
    env = VLPRewardWrapper(env, options.instruction, model, reward="progress")
    observation, info = env.reset(seed=0)
    frames, rewards, truncated = [env.render()], [info["vlp"]["score"]], False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(agent.predict(observation, deterministic=True)[0])
        frames.append(env.render())
        rewards.append(reward)
    env.close()
    return np.stack(frames), np.array(rewards)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
