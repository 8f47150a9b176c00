"""SAC presses a button without any reward: it learns one from labels that say which of two clips is better.

    python examples/pebble_button_press.py                      # VLP labels the clips
    python examples/pebble_button_press.py --labels scripted    # the environment's own reward does, for comparison

With --labels vlp the environment's reward is not used, only the sentence; its success is used for evaluation only.
Everything lands in --out: TensorBoard logs, result.json, learning_curve.png, policy.zip,
final_policy.mp4, and in checkpoints/ what --resume goes on from. Ctrl-C keeps what was learned.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback

from vlp_gym import PreferenceCallback, PreferenceReplayBuffer, Queries, VLPRewardWrapper, make_metaworld
from vlp_gym.metaworld.judge import judge_state
from vlp_gym.preferences import Labeler, ModelLabeler, RecordedLabeler, ScriptedLabeler
from vlp_gym.video import overlay_video
from vlp_gym.viz import plot_learning_curve


@dataclass(frozen=True)
class Options:
    """Train SAC from preferences."""

    task: str = "button-press-v3"
    """Meta-World task."""
    instruction: str = "press the button"
    """The instruction that VLP judges by."""
    labels: Literal["vlp", "scripted", "random"] = "vlp"
    """What labels the clips; "random" is a control that should not succeed."""
    kind: Literal["reward", "preference"] = "reward"
    """What VLP compares: the sums of the rewards that it pays, or its preference for each whole clip."""
    model: str = "vlp-compact"
    """Reward model: a name, a folder or a hub id. vlp-compact-45 never saw this task."""
    teacher: Literal["oracle", "mistake", "noisy", "skip", "equal", "myopic"] = "oracle"
    """B-Pref's teacher, for --labels scripted."""
    steps: int = 20_000
    """Decisions of the agent; each holds for --repeat environment steps."""
    learning_starts: int = 1_000
    """Decisions at random before anything is learned."""
    queries: Queries = field(
        default_factory=lambda: Queries(budget=1_000, session=30, every=500, explore=1_000, newest=30, length=25)
    )
    """The labelling schedule; steps are decisions."""
    fit_epochs: int = 15
    """Most epochs of the learned reward at each session; it stops at an accuracy of 0.97."""
    hidden: int = 128
    """Width of its three hidden layers; PEBBLE's 256 takes longer."""
    reward_std: float | None = 0.3
    """Standard deviation of the learned reward over what the agent has done; None takes it as it is."""
    seed: int = 0
    """Seeds the task's placements, the agent, the choice of pairs and the exploration."""
    episode_steps: int = 150
    """Length of an episode."""
    repeat: int = 2
    """Environment steps that each action is held for."""
    eval_every: int = 2_500
    """Decisions between two evaluations."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    threads: int = 1
    """Torch threads; more rarely helps nets of this size."""
    resume: bool = False
    """Go on from the newest evaluation in --out."""
    out: Path | None = None
    """Where the results go; runs/pebble-LABELS-TASK-SEED by default."""


def main(options: Options) -> None:
    """Train, evaluate, and show the result."""
    torch.set_num_threads(options.threads)
    out = options.out or Path("runs") / f"pebble-{options.labels}-{options.task}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    env = make_env(options, seed=options.seed)
    labeler: Labeler = ScriptedLabeler(options.teacher, options.seed)
    if options.labels == "random":
        coin = np.random.default_rng(options.seed)
        labeler = lambda first, second: coin.integers(0, 2, len(first)).astype(float)  # noqa: E731
    if options.labels == "vlp":
        env = VLPRewardWrapper(env, options.instruction, options.model, mode="async")
        labeler = RecordedLabeler() if options.kind == "reward" else ModelLabeler(env.engine, options.instruction)
    preferences = PreferenceCallback(
        labeler,
        options.queries,
        fit_epochs=options.fit_epochs,
        hidden=(options.hidden,) * 3,
        reward_std=options.reward_std,
        judge=judge_state,
        seed=options.seed,
    )
    history: list[dict[str, float]] = []
    if options.resume:
        found = newest_checkpoint(out)
        agent = SAC.load(found / "policy.zip", env)
        preferences.restore(found, agent)
        history = json.loads((found / "history.json").read_text())
    else:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)  # of another run
        agent = SAC(
            "MlpPolicy",
            env,
            learning_rate=lambda left: 1e-3 * left,  # falls to 0, so that the last policy is a settled one
            learning_starts=options.learning_starts,
            gamma=0.98,
            tau=0.01,
            ent_coef="auto_0.05",
            policy_kwargs={"net_arch": [256, 256]},
            replay_buffer_class=PreferenceReplayBuffer,
            tensorboard_log=str(out / "tensorboard"),
            seed=options.seed,
        )
    evaluation = Evaluation(options, out, preferences, history)
    try:
        callbacks = CallbackList([preferences, evaluation, ProgressBarCallback()])
        left = options.steps - agent.num_timesteps
        agent.learn(left, callbacks, tb_log_name="pebble", reset_num_timesteps=not options.resume)
    except KeyboardInterrupt:
        print("\nstopped: keeping what was learned; --resume goes on")
    evaluation.run()
    evaluation.env.close()
    env.close()
    agent.save(out / "policy.zip")

    title = f"“{options.instruction}” from {preferences.asked} labels, {options.labels}"
    panels = {
        "success": "success rate",
        "label_accuracy": "label accuracy (true return)",
        "judged_accuracy": "label accuracy (success and way left)",
    }
    curves = {options.task: [[*history, *preferences.history]]}
    plot_learning_curve(curves, out / "learning_curve.png", title=title, xlabel="decisions", quantities=panels)
    film(options, agent, preferences, out / "final_policy.mp4")
    result = {
        "options": json.loads(json.dumps(asdict(options), default=str)),
        "success": history[-1]["success"],
        "labels": preferences.asked,
        "minutes": (time.monotonic() - started) / 60,
        "history": history,
        "sessions": preferences.history,
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
        """The sum of what the environment pays: scripted labels are made of it."""
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other placements, counts the environment's own success, and saves it."""

    def __init__(
        self, options: Options, out: Path, preferences: PreferenceCallback, history: list[dict[str, float]]
    ) -> None:
        super().__init__()
        self.options, self.out, self.preferences, self.history = options, out, preferences, history
        self.env = make_env(options, seed=options.seed + 1_000, terminate_on_success=True)
        self.started = time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.options.eval_every == 0:
            self.run()
        return True

    def run(self) -> None:
        """Evaluate once, and remember the outcome."""
        if self.history and self.history[-1]["step"] == self.num_timesteps:
            return
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
            "labels": self.preferences.asked,
            "minutes": (time.monotonic() - self.started) / 60,
        }
        folder = self.out / "checkpoints" / f"{self.num_timesteps:09}"
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save(folder / "policy.zip")
        (folder / "history.json").write_text(json.dumps([*self.history, row]))
        self.preferences.save(folder)  # last: a checkpoint without it is none
        for old in sorted((self.out / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(old)
        self.history.append(row)
        self.logger.record("eval/success", row["success"])
        self.logger.dump(self.num_timesteps)
        agreed = [session["judged_accuracy"] for session in self.preferences.history[-3:]]
        print(
            f"{self.num_timesteps:>8,} decisions  success {row['success']:.2f}  labels {row['labels']:.0f}, "
            f"right {np.mean(agreed) if agreed else np.nan:.2f}  {row['minutes']:.1f} min"
        )


def newest_checkpoint(out: Path) -> Path:
    """The folder of the newest evaluation that was saved to its end."""
    found = sorted(path.parent for path in (out / "checkpoints").glob("*/preferences-run.json"))
    if not found:
        raise SystemExit(f"--resume: expected a run in {out}, found none; give its --out, or leave --resume out")
    return found[-1]


def film(options: Options, agent: SAC, preferences: PreferenceCallback, path: Path) -> None:
    """An episode of the final policy on a placement it has not seen, with the learned reward beside it."""
    env = make_env(options, seed=options.seed + 2_000)
    observation, _ = env.reset(seed=0)
    frames, rewards, truncated = [env.render()], [0.0], False
    while not truncated:
        action, _ = agent.predict(observation, deterministic=True)
        rewards.append(preferences.reward(observation, agent.policy.scale_action(action)))
        observation, _, _, truncated, _ = env.step(action)
        frames.append(env.render())
    env.close()
    overlay_video(np.stack(frames), np.array(rewards), path, title=options.instruction)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
