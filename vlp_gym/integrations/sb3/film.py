"""A video of the agent at each evaluation, with its reward curve beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from vlp_gym.errors import check_packages
from vlp_gym.integrations.sb3.logs import NOT_IN_TEXT, VideoFile
from vlp_gym.video import overlay_video


class RewardVideo(BaseCallback):
    """Films one episode whenever it is called, as by ``EvalCallback(..., callback_after_eval=RewardVideo(env))``.

    The video goes into a file, and as ``eval/video`` to the loggers that take one (`TrackerWriter`).

    Args:
        env: a Gymnasium environment that renders "rgb_array", such as a `VLPRewardWrapper`, for this alone: with
            ``mode="sync"``, whose steps return their own rewards.
        folder: for ``step-N.mp4``.
        fps: frames per second.
        title: above the curve, such as the instruction.
        reward_range: the vertical axis shows at least this; None fits it to the rewards.
        most: at most so many steps.
        verbose: as in every callback of Stable-Baselines3.

    Raises:
        MissingExtraError: PyAV, matplotlib or Pillow is not installed.
    """

    def __init__(
        self,
        env: Any,
        folder: str | Path = "runs/videos",
        *,
        fps: float = 20.0,
        title: str = "",
        reward_range: tuple[float, float] | None = (0.0, 1.0),
        most: int = 1_000,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_packages(dict.fromkeys(("av", "matplotlib", "PIL"), "viz"), "videos need")
        self.env, self.folder, self.fps, self.title = env, Path(folder), fps, title
        self.reward_range, self.most = reward_range, most

    def _on_step(self) -> bool:
        model: Any = self.model
        # Not seeded: a seed of its own would show the same placement for ever.
        observation, _ = self.env.reset()
        frames, rewards, over = [self.env.render()], [0.0], False
        while not over and len(rewards) <= self.most:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = self.env.step(action)
            over = terminated or truncated
            frames.append(self.env.render())
            rewards.append(float(reward))
        rewards[0] = rewards[1]  # the first frame is not paid for
        path = self.folder / f"step-{model.num_timesteps}.mp4"
        overlay_video(np.stack(frames), rewards, path, fps=self.fps, title=self.title, reward_range=self.reward_range)
        self.logger.record("eval/video", VideoFile(path), exclude=NOT_IN_TEXT)
        return True
