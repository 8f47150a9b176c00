"""From 20 videos of your own to an agent that learns from their sentence: Fetch pushes a block.

    python examples/own_videos.py
    python examples/own_videos.py --task FetchReach --instruction "poke the red thing"
    python examples/own_videos.py --task FetchReach --reward dense    # the same agent, for comparison

1. A hand-written expert stands in for you: it records videos of successes and failures, with captions.csv.
2. `vlp-compact` is fine-tuned on them (`vlp-gym train`), with some held out; the report on those says what to expect.
3. SAC learns from that model's reward alone; the environment's own success is used for evaluation only.

Each `vlp-gym` command is printed before it runs. Everything lands in --out: videos/, shards/, model/ with its
report in held-out/, examples.png, TensorBoard logs, learning_curve.png, policy.zip and result.json.
"""

from __future__ import annotations

import csv
import json
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import av
import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from tqdm import tqdm

from vlp_gym import VLPDictReplayBuffer, VLPRewardCallback, VLPRewardWrapper
from vlp_gym.commands.main import main as vlp_gym
from vlp_gym.fetch.collect import FetchConfig, rollout
from vlp_gym.fetch.env import make_fetch
from vlp_gym.viz import plot_learning_curve

OTHER = {"FetchReach": "touch the red ball", "FetchPush": "move the cube over the table to the red ball"}
FPS = 12.5  # frames per second of the videos: Fetch's 25, every second one


@dataclass(frozen=True)
class Options:
    """Record videos, fine-tune a reward model on them, and train SAC on its reward."""

    task: Literal["FetchPush", "FetchReach", "FetchSlide", "FetchPickAndPlace"] = "FetchPush"
    """What is done."""
    instruction: str = "bring the dark box across to the red marker"
    """How you say it; the model has never seen this sentence."""
    model: Path | None = None
    """A reward model that is there already, trained on the task: nothing is recorded or fine-tuned."""
    videos: int = 20
    """Videos of successes, and as many of each kind of failure: halfway, beside the goal, at random."""
    train_steps: int = 600
    """Most steps of the fine-tuning; --patience ends it earlier."""
    patience: int = 5
    """Measurements of the held-out loss without a lower one after which it ends."""
    reward: Literal["model", "dense", "sparse"] = "model"
    """What SAC is paid: the fine-tuned model's reward, or the environment's own, for comparison."""
    steps: int = 20_000
    """Steps of the agent."""
    eval_every: int = 2_500
    """Steps between two evaluations."""
    eval_episodes: int = 20
    """Episodes of an evaluation."""
    size: int = 112
    """Side of the frames, pixels."""
    seed: int = 0
    """Seeds the videos, the training and the agent."""
    threads: int = 1
    """Torch threads."""
    out: Path | None = None
    """Where the results go; runs/own-videos-TASK-SEED by default."""


def main(options: Options) -> None:
    """Record, fine-tune, judge, use."""
    torch.set_num_threads(options.threads)
    out = options.out or Path("runs") / f"own-videos-{options.task}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    model = options.model or out / "model"
    if options.reward == "model" and options.model is None:
        record(options, out / "videos")
        fine_tune(options, out)
    minutes = (time.monotonic() - started) / 60
    history = learn(options, model, out)
    result = {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "minutes_to_a_model": minutes,
        "minutes": (time.monotonic() - started) / 60,
        "success": history[-1]["success"],
        "history": history,
    }
    (out / "result.json").write_text(json.dumps(result, indent=2))
    plot_learning_curve(
        {options.task: [history]}, out / "learning_curve.png", title=f"“{options.instruction}”", xlabel="steps"
    )
    print(f"success {history[-1]['success']:.2f} over {options.eval_episodes} episodes after {options.steps:,} steps")
    print(f"see {out}/learning_curve.png; tensorboard --logdir {out}/tensorboard")


def record(options: Options, folder: Path) -> None:
    """Write the videos, and captions.csv: file, sentence, success, tier, group.

    Another task with its own sentence is among them: without one, a model cannot learn what the sentence is for.
    """
    if (folder / "captions.csv").exists():
        return
    folder.mkdir(exist_ok=True)
    other = next(task for task in OTHER if task != options.task)
    rows = []
    config = FetchConfig(size=options.size, seed=options.seed)
    for task, sentence in ((options.task, options.instruction), (other, OTHER[other])):
        env = make_fetch(task, size=2 * options.size)
        kinds = [
            (tier, number) for tier in ("expert", "medium", "near_miss", "random") for number in range(options.videos)
        ]
        for tier, number in tqdm(kinds, desc=f"recording {task}", unit="video"):
            shown = rollout(env, task, tier, config, number)
            file = f"{task}-{tier}-{number}.mp4"
            write_video(shown.frames, folder / file)
            rows.append([file, sentence, "yes" if shown.success[-1] else "no", tier, task])
        env.close()
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "sentence", "success", "tier", "group"], *rows])


def write_video(frames: np.ndarray, path: Path) -> None:
    """Write frames uint8 ``[F, H, W, 3]`` as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(2 * FPS), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 2 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def fine_tune(options: Options, out: Path) -> None:
    """The commands for data of your own; the report is in model/held-out."""
    videos, shards, model = out / "videos", out / "shards", out / "model"
    command("data", "inspect", f"videos:{videos}", "--fps", FPS, "--size", options.size, "--out", out)
    command("data", "convert", f"videos:{videos}", "--fps", FPS, "--size", options.size, "--out", shards)
    command(
        "train", "staged", "--init", "vlp-compact", "--data", shards, "--split", "data", "--tasks-per-batch", 2,
        "--steps", options.train_steps, "--relevance-steps", options.train_steps // 5, "--learning-rate", 5e-4,
        "--hold-out", 0.2, "--patience", options.patience, "--seed", options.seed, "--out", model,
    )  # fmt: skip


def command(*arguments: object) -> None:
    """Run a command line of vlp-gym here, and stop where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ vlp-gym {shlex.join(words)}")
    if vlp_gym(words):
        raise SystemExit(2)


def learn(options: Options, model: Path, out: Path) -> list[dict[str, float]]:
    """Train SAC; returns one row per evaluation."""
    env: gym.Env = make_fetch(options.task)
    if options.reward == "model":
        env = VLPRewardWrapper(env, options.instruction, str(model), reward="progress")
    elif options.reward == "sparse":
        env = gym.wrappers.TransformReward(
            env, lambda reward: float(reward > -0.05)
        )  # Fetch's bound of success, metres
    agent = SAC(
        "MultiInputPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=min(1_000, options.steps // 2),
        gamma=0.95,
        tau=0.01,
        ent_coef="auto_0.05",  # rewards are at most 1: the usual start of 1 would drown them in entropy
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=VLPDictReplayBuffer if options.reward == "model" else None,
        tensorboard_log=str(out / "tensorboard"),
        seed=options.seed,
    )
    evaluation = Evaluation(options)
    late = [VLPRewardCallback()] if options.reward == "model" else []
    agent.learn(options.steps, CallbackList([*late, evaluation, ProgressBarCallback()]), tb_log_name="sac")
    evaluation.run()
    agent.save(out / "policy.zip")
    evaluation.env.close()
    env.close()
    return evaluation.history


class Evaluation(BaseCallback):
    """Runs the agent without exploration on other goals, and counts the episodes that end in success."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options, self.env = options, make_fetch(options.task)
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
        successes: list[float] = []
        for episode in range(self.options.eval_episodes):
            observation, info = self.env.reset(seed=10_000 + episode)
            truncated = False
            while not truncated:
                action, _ = self.model.predict(observation, deterministic=True)
                observation, _, _, truncated, info = self.env.step(action)
            successes.append(float(info["is_success"]))
        self.history.append(self._row(successes))
        self.logger.record("eval/success", self.history[-1]["success"])
        self.logger.dump(self.num_timesteps)
        print(f"{self.num_timesteps:>8,} steps  success {self.history[-1]['success']:.2f}")

    def _row(self, successes: list[float]) -> dict[str, Any]:
        buffer = self.model.replay_buffer
        newest = buffer.rewards[max(buffer.pos - self.options.eval_every, 0) : max(buffer.pos, 1)]
        return {
            "step": self.num_timesteps,
            "success": float(np.mean(successes)),
            "reward": float(np.mean(newest)),
            "minutes": (time.monotonic() - self.started) / 60,
        }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
