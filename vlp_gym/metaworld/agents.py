"""Rollouts of an agent trained on a reward model, which show states where that model is wrong.

A model trained on scripted rollouts may reward states that no script visits, such as a hand beside the button instead
of on it. An agent finds these states, and its labelled rollouts teach them to the next model.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.data.trajectory import AGENT, Trajectory
from vlp_gym.errors import import_extra
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.instructions import instructions_for
from vlp_gym.metaworld.recorder import Recorder
from vlp_gym.metaworld.variety import vary_scene
from vlp_gym.wrappers.single import VLPRewardWrapper

EPISODE_STEPS = 150  # environment steps
RANDOM_EPISODES = 10  # episodes before learning starts
FIRST_KEPT, KEPT_EVERY = 12, 3  # episodes to record; consecutive ones are too similar


def agent_rollouts(
    env: gym.Env[Any, Any], task: str, config: CollectConfig, rng: np.random.Generator
) -> list[Trajectory]:
    """Train SAC on the reward of ``config.agent_model`` for the task's canonical sentence; record some later episodes.

    Each action is repeated for ``config.stride`` steps, so that the rewarded frames are exactly the recorded ones.

    Args:
        env: environment from `make_metaworld`.
        task: name of its task.
        config: settings; ``config.agent`` is the number of rollouts.
        rng: draws placements and scenes; the agent's seed is ``config.seed``.

    Raises:
        MissingExtraError: without Stable-Baselines3.
    """
    sb3 = import_extra("stable_baselines3", "rollouts of agents need", "sb3")
    episodes = _Episodes(env, config, rng)
    decisions = -(-EPISODE_STEPS // config.stride)  # in an episode
    agent = sb3.SAC(
        "MlpPolicy",
        VLPRewardWrapper(episodes, instructions_for(task)[0], config.agent_model),
        learning_rate=1e-3,
        learning_starts=RANDOM_EPISODES * decisions,
        gamma=0.95,
        tau=0.01,
        ent_coef="auto_0.05",
        policy_kwargs={"net_arch": [256, 256]},
        seed=config.seed,
        device="cpu",
    )
    agent.learn((FIRST_KEPT + KEPT_EVERY * config.agent) * decisions)
    episodes.restore()
    return [
        recorder.trajectory(task=task, tier=AGENT, seed=seed, camera=config.camera, stride=config.stride, varied=varied)
        for seed, varied, recorder in episodes.kept[: config.agent]
    ]


class _Episodes(gym.Wrapper[Any, Any, Any, Any]):
    """Draws a placement and scene per episode, repeats actions, and records some episodes, see `KEPT_EVERY`."""

    def __init__(self, env: gym.Env[Any, Any], config: CollectConfig, rng: np.random.Generator) -> None:
        super().__init__(env)
        self.config, self.rng = config, rng
        self.kept: list[tuple[int, bool, Recorder]] = []
        self.recorder: Recorder
        self.number = -1
        self.restore = lambda: None
        self.success = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode at a random placement."""
        self.restore()
        seed, varied = int(self.rng.integers(2**31)), bool(self.rng.random() < self.config.varied_share)
        observation, info = self.env.reset(seed=seed, options=options)
        self.restore = vary_scene(self.env, self.rng) if varied else lambda: None
        self.success = False
        self.recorder = Recorder(self.env, self.config.size, observation)
        self.number += 1
        if self._keeping():
            self.kept.append((seed, varied, self.recorder))
        return observation, info

    def step(self, action: Any) -> Any:
        """Repeat the action, at most until the end of the episode."""
        rewards = self.recorder.rewards
        for _ in range(min(self.config.stride, EPISODE_STEPS - len(rewards))):
            observation, reward, terminated, _, info = self.env.step(action)
            self.recorder.step(action, observation, float(reward))
        self.success = bool(info["success"])
        return observation, reward, terminated, len(rewards) >= EPISODE_STEPS, info

    def render(self) -> Any:
        """Render, and record the frame if the episode is kept."""
        frame: Any = self.env.render()
        if self._keeping():
            self.recorder.add(frame, self.success)
        return frame

    def _keeping(self) -> bool:
        return self.number >= FIRST_KEPT and (self.number - FIRST_KEPT) % KEPT_EVERY == 0
