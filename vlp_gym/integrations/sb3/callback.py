"""The callback that brings late rewards to the buffers of Stable-Baselines3, and logs what the reward model pays."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from vlp_gym.engine.tickets import Ticket
from vlp_gym.integrations.sb3.buffers import (
    NO_SHARED_ROWS,
    LateBuffer,
    VLPReplayBuffer,
    VLPRolloutBuffer,
    late_rollout_buffer,
)
from vlp_gym.integrations.sb3.logs import NOT_IN_TEXT
from vlp_gym.integrations.sb3.source import RewardSource
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import HEADS, ours_in, ticket_in
from vlp_gym.rewards.normalizer import RewardNormalizer as RewardNormalizer
from vlp_gym.wrappers.streaming import NO_RELABELLING

HISTOGRAM = "vlp/rewards"
MOST_PAID = 10_000  # rewards in one histogram, the newest ones


class VLPRewardCallback(BaseCallback):
    """Brings late rewards to the buffer of the model, and logs what the reward model pays.

    At the start of the training it attaches the environment's wrappers to the buffer, and replaces the rollout buffer
    of an on-policy model by a `VLPRolloutBuffer` with the same settings. At the end it waits for pending rewards. With
    ``mode="sync"`` it only logs.

    Logged are ``vlp/reward``, ``vlp/score`` and, if the model has them, ``vlp/progress`` and ``vlp/relevance`` (means
    over deliveries), ``vlp/env_return`` (mean of the environments' own returns of finished episodes),
    ``vlp/latency_p50`` and ``vlp/latency_p99`` (seconds), and the buffer's ``vlp/queue_depth``, ``vlp/stale``,
    ``vlp/failed`` and, of a replay buffer, ``vlp/ready_share`` (the share of the rows whose rewards are there). Loggers
    with histograms get ``vlp/rewards``, the rewards since the last time. With late rewards, Stable-Baselines3's own
    ``rollout/ep_rew_mean`` adds up placeholders; ``rollout/success_rate`` is that of the last steps of episodes under
    ``success_threshold``, or the environment's own.

    Where a wrapper outside may make steps or change rewards, as for a frame skip, every step waits for its reward.

    Args:
        timeout_s: how long to wait when no reward comes, before `QueryTimeout` is raised.
        normalize_reward: divide rewards by the running deviation of the returns, see `RewardNormalizer`; replaces
            ``VecNormalize(norm_reward=True)``, which would see placeholders.
        verbose: as in every callback of Stable-Baselines3.

    Raises:
        ValueError: for a time-out that is not above 0 and finite; at the start of the training, without a wrapper, or
            with something that late rewards do not go with.
    """

    def __init__(self, timeout_s: float = 60.0, normalize_reward: bool = False, verbose: int = 0) -> None:
        super().__init__(verbose)
        if not 0.0 < timeout_s < float("inf"):
            raise ValueError(f"timeout_s must be seconds, got {timeout_s}")
        self.timeout_s, self.normalize_reward = timeout_s, normalize_reward
        self._source: RewardSource | None = None
        self._buffer: LateBuffer | None = None
        self._returns: list[float] = []
        self._paid: deque[float] = deque(maxlen=MOST_PAID)
        self._shown = 0  # of these, in a histogram
        self._ends: set[tuple[int, Ticket]] = set()  # last steps of episodes whose success is not known yet

    def update_locals(self, locals_: dict[str, Any]) -> None:
        """Take in the newest step, once.

        Not in `_on_step`: another callback that runs first may save the replay buffer or stop the training, and must
        find the step's tickets known and its deliveries taken.
        """
        super().update_locals(locals_)
        if self._buffer is not None and "infos" in locals_:
            self._buffer.announce(locals_["infos"], locals_["rewards"])

    def _on_training_start(self) -> None:
        self._buffer = None
        venv = self.training_env
        self._source = RewardSource(venv, self._note)
        self._returns = [0.0] * venv.num_envs
        self._ends.clear()
        model: Any = self.model
        check(model, self._source)
        if self.normalize_reward and not self._source.late:
            raise ValueError('normalize_reward is for mode="async"; with "sync" use VecNormalize(norm_reward=True)')
        rollouts = getattr(model, "rollout_buffer", None)
        if rollouts is not None and self._source.late and not isinstance(rollouts, VLPRolloutBuffer):
            model.rollout_buffer = rollouts = late_rollout_buffer(rollouts)
        buffer = rollouts or getattr(model, "replay_buffer", None)
        if isinstance(buffer, LateBuffer):
            if self.normalize_reward and buffer.normalizer is None:
                buffer.normalizer = RewardNormalizer(venv.num_envs, model.gamma)
            buffer.attach(self._source, self.timeout_s)
            self._buffer = buffer
            self._source.take_late_rewards()

    def _on_step(self) -> bool:
        infos = self.locals.get("infos", ())  # ARS has none: it adds up returns by itself
        if not infos:
            return True
        if self._source is None:
            raise RuntimeError("VLPRewardCallback was not started: give it to learn(), which calls on_training_start")
        for index, (info, done) in enumerate(zip(infos, self.locals["dones"], strict=True)):
            ours = ours_in(info)
            assert ours is not None
            ticket = ticket_in(ours)
            if ticket is None:
                self._log_scores(float(self.locals["rewards"][index]), ours)
            self._returns[index] += float(ours["env_reward"])
            if done:
                if ticket is not None and self._source.judges and "is_success" not in info:
                    self._ends.add((index, ticket))
                if np.isfinite(self._returns[index]):
                    self._log("env_return", self._returns[index])
                self._returns[index] = 0.0
        if any(self.locals["dones"]):  # an off-policy algorithm writes its log at the end of an episode
            self._log_state()
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self._buffer, VLPRolloutBuffer):
            self._log_state()

    def _on_training_end(self) -> None:
        if self._buffer is not None and self._source is not None:
            self._buffer.settle()
            self._source.take_late_rewards(False)
            self._log_state()

    def _note(self, index: int, delivery: Delivery) -> None:
        if (index, delivery.ticket) in self._ends:  # as Stable-Baselines3 does with info["is_success"]
            self._ends.remove((index, delivery.ticket))
            successes: Any = self.model.ep_success_buffer
            successes.append(delivery.success)
        self._log_scores(delivery.reward, delivery._asdict())

    def _log_scores(self, reward: float, scores: Mapping[str, Any]) -> None:
        self._log("reward", reward)
        if np.isfinite(reward):
            if len(self._paid) == MOST_PAID:  # the oldest one goes
                self._shown = max(self._shown - 1, 0)
            self._paid.append(reward)
        for name in ("score", *HEADS):
            if (value := scores.get(name)) is not None and np.isfinite(value):
                self._log(name, float(value))

    def _log(self, name: str, value: float) -> None:
        self.logger.record_mean(f"vlp/{name}", value)

    def _log_state(self) -> None:
        assert self._source is not None
        for name, seconds in self._source.latencies().items():
            self.logger.record(f"vlp/{name}", seconds)
        if self._buffer is not None:
            counts = self._buffer.stats()
            for name, count in (("queue_depth", "pending"), ("stale", "stale"), ("failed", "failed")):
                self.logger.record(f"vlp/{name}", counts[count])
        if isinstance(self._buffer, VLPReplayBuffer):
            self.logger.record("vlp/ready_share", self._buffer.ready_share())
        self._log_rewards()

    def _log_rewards(self) -> None:
        """The rewards since the last dump of the logger, as a tensor, of which loggers draw histograms."""
        if HISTOGRAM not in self.logger.name_to_value:
            for _ in range(self._shown):
                self._paid.popleft()
            self._shown = 0
        if self._paid:
            self._shown = len(self._paid)
            self.logger.record(HISTOGRAM, torch.tensor(self._paid), exclude=NOT_IN_TEXT)


def check(model: Any, source: RewardSource) -> None:
    """Raise ValueError for a model or environment that rewards of a sentence, or late ones, do not go with."""
    buffer = getattr(model, "replay_buffer", None)
    if isinstance(buffer, HerReplayBuffer):
        raise ValueError(NO_RELABELLING)
    if not source.late:
        return
    venv = source.venv
    while isinstance(venv, VecEnvWrapper) and venv is not source.vector:
        if isinstance(venv, VecNormalize) and venv.norm_reward:
            raise ValueError(
                "VecNormalize(norm_reward=True) would normalize placeholders, the rewards come later; set "
                "norm_reward=False and give VLPRewardCallback(normalize_reward=True)"
            )
        venv = venv.venv
    if buffer is None and getattr(model, "rollout_buffer", None) is None:
        raise ValueError(
            f'{type(model).__name__} keeps no buffer in which a late reward could find its place; use mode="sync"'
        )
    if getattr(buffer, "optimize_memory_usage", False):
        raise ValueError(NO_SHARED_ROWS)
    if buffer is not None and not isinstance(buffer, VLPReplayBuffer):
        raise ValueError(
            f"{type(buffer).__name__} would train on placeholders, the rewards come later; give the model "
            "replay_buffer_class=VLPReplayBuffer, VLPDictReplayBuffer (dictionary observations) or "
            "VLPNStepReplayBuffer (n-step returns)"
        )
