"""RLlib with rewards that come late: a callback that completes what the env runners have sampled.

```python
register_env("button", lambda context: VLPRewardWrapper(make_env(), "press the button", mode="async"))
config = PPOConfig().environment("button").callbacks(VLPRewardCallback)
```

It works in each env runner, where the environments are, before a sample goes to a replay buffer or to learners,
wherever these may be: nothing behind it meets a placeholder.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, NamedTuple

from vlp_gym.errors import missing_extra
from vlp_gym.rewards.info import ours_in, ticket_in
from vlp_gym.rewards.ledger import RewardLedger
from vlp_gym.rewards.waiting import wait_for_rewards
from vlp_gym.wrappers.late_source import LateSource

try:
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.rllib.connectors.env_to_module import PrevActionsPrevRewards
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
except ImportError as error:
    raise missing_extra(error, 'RLlib is not installed: pip install "vlp_gym[rllib]"') from error

logger = logging.getLogger("vlp_gym")

ENV = "vlp_env"
"""In an episode's custom data, which all its parts have: the number of its environment in the env runner."""
MEDDLING = (
    "PrevActionsPrevRewards puts rewards into observations, and late ones pass it by: each step waits for its reward. "
    "Leave it out to have late rewards"
)


class _Part(NamedTuple):
    """A part of an episode, and the rows of the ledger that stand for its transitions."""

    episode: SingleAgentEpisode
    rows: range


class _Samples:
    """What an env runner has sampled, in order, until all its rewards are there."""

    def __init__(self, source: LateSource, timeout_s: float) -> None:
        self._source, self._timeout_s = source, timeout_s
        self._num_envs = source.num_envs or 1
        self._ledger = RewardLedger(self._num_envs)
        self._held: deque[list[_Part]] = deque()
        self._places: dict[int, tuple[SingleAgentEpisode, int]] = {}
        """Where the reward of a row belongs."""
        self._rows = 0
        self._before: dict[int, Any] = {}
        """The rewards of the part before, for each environment: the next one begins with some of them."""
        self._broken: set[str] = set()
        """Episodes that go on, although rewards of them were lost."""

    def __len__(self) -> int:
        return len(self._held)

    def end_episodes(self) -> bool:
        """Whether an episode ends in them."""
        return any(part.episode.is_done for parts in self._held for part in parts)

    def put(self, episodes: list[SingleAgentEpisode]) -> None:
        """Take in a sample, whose rewards will be changed in place."""
        parts = []
        for episode in episodes:
            first = self._rows
            for place, info in enumerate(episode.get_infos()[1:], episode.rewards.lookback):
                self._announce(episode, place, info)
            parts.append(_Part(episode, range(first, self._rows)))
        self._held.append(parts)

    def take(self, timeout_s: float = 0.0) -> bool:
        """Take the rewards that have come; whether there were any."""
        came = False
        for env, deliveries in self._source.poll(timeout_s):
            for ticket, reward, *_ in deliveries:
                self._ledger.deliver(env, ticket, reward, self._write)
                came = True
        return came

    def wait(self) -> None:
        """Wait for all rewards that are on their way."""
        ledger = self._ledger
        wait_for_rewards(ledger, lambda: not ledger.waiting(), self.take, self._source.idle, self._timeout_s)

    def pop(self) -> list[SingleAgentEpisode]:
        """The oldest samples, up to the first one that has to wait. What has lost a reward is left out."""
        taken: list[SingleAgentEpisode] = []
        while self._held and not any(map(self._waits, self._held[0])):
            for part in self._held.popleft():
                if self._is_whole(part):
                    taken.append(part.episode)
        return taken

    def _announce(self, episode: SingleAgentEpisode, place: int, info: dict[str, Any]) -> None:
        row, self._rows = self._rows, self._rows + 1
        ticket = ticket_in(ours_in(info))
        if ticket is None:
            return
        env = episode.custom_data[ENV]
        self._ledger.announce(env, ticket)
        self._places[row] = episode, place
        self._ledger.close(row)
        tickets = [ticket if each == env else None for each in range(self._num_envs)]
        self._ledger.bind(row, tickets, self._write)

    def _write(self, row: int, env: int, reward: float) -> None:
        episode, place = self._places.pop(row)
        episode.rewards.data[place] = reward

    def _waits(self, part: _Part) -> bool:
        missing = self._ledger.missing
        return any(ticket is not None for row in part.rows for ticket in missing.get(row, {}).values())

    def _is_whole(self, part: _Part) -> bool:
        """Whether this part has all its rewards, and the parts before it had; puts right what it repeats of them."""
        episode, missing = part.episode, self._ledger.missing
        lost = [row for row in part.rows if missing.pop(row, None) is not None]
        for row in lost:
            del self._places[row]
        if lost:
            self._broken.add(episode.id_)
        whole = episode.id_ not in self._broken
        if episode.is_done:
            self._broken.discard(episode.id_)
        rewards, env = episode.rewards, episode.custom_data[ENV]
        if rewards.lookback:
            rewards.data[: rewards.lookback] = self._before[env][-rewards.lookback :]
        self._before[env] = rewards.data
        return whole


class VLPRewardCallback(RLlibCallback):
    """Gives each transition of RLlib's new API stack its own reward where they come late (``mode="async"``).

    ``config.callbacks(VLPRewardCallback)``; the environments, single-agent, have a `VLPRewardWrapper` in the creator
    that is registered, or with ``gym_env_vectorize_mode="vector_entry_point"`` a `VLPVectorRewardWrapper`. With
    ``mode="sync"`` it does nothing.

    On-policy, and in evaluations, an env runner returns a sample when all its rewards are there. Off-policy (where
    there is a ``replay_buffer_config``) it runs ahead: a sample whose rewards are missing is returned by a later call,
    at most `run_ahead` later. Where an episode ends it waits, so that RLlib's metrics of returns are the real ones.

    A reward wrapper around which something reads rewards at each step (`PrevActionsPrevRewards`, a wrapper outside) has
    no late rewards: each step waits, which is logged.

    Raises:
        ValueError: if the algorithm runs on the old API stack, or an environment has no reward wrapper; those of an
            evaluation need none.
        TypeError: for multi-agent environments.
        QueryError, QueryTimeout: when an env runner samples, what the reward model raised, or if no reward comes for
            too long. If you train on then, what has lost its rewards is left out.
    """

    run_ahead = 16
    """How many samples of an off-policy algorithm may wait for rewards; to change it, subclass."""
    timeout_s = 60.0
    """How long to wait when no reward comes."""

    def __init__(self) -> None:
        super().__init__()
        self._envs: Any = None
        self._source: LateSource | None = None
        self._samples: _Samples | None = None
        self._sampled = False

    def on_algorithm_init(self, *, algorithm: Any, **_: Any) -> None:
        """Check that it is the new API stack."""
        if not algorithm.config.enable_env_runner_and_connector_v2:
            raise ValueError(
                "VLPRewardCallback needs RLlib's new API stack: config.api_stack(enable_rl_module_and_learner=True, "
                "enable_env_runner_and_connector_v2=True)"
            )

    def on_episode_start(self, *, episode: Any, env_runner: Any, env_index: int, **_: Any) -> None:
        """Let the rewards of the episode come late."""
        if env_runner.env is not self._envs:
            self._attach(env_runner, episode)
        if self._source is not None:
            episode.custom_data[ENV] = env_index
            self._source.come_late()

    def on_sample_end(self, *, env_runner: Any, samples: list[Any], **_: Any) -> None:
        """Put the rewards in their places, and leave in the sample what is complete."""
        mine = self._samples
        if mine is None:
            return
        mine.put(list(samples))
        samples.clear()
        config = env_runner.config
        ahead = self._sampled and not config.in_evaluation and hasattr(config, "replay_buffer_config")
        if not ahead or len(mine) > self.run_ahead or mine.end_episodes():
            mine.wait()
        else:
            mine.take()
        samples += mine.pop()
        self._sampled = True

    def _attach(self, env_runner: Any, episode: Any) -> None:
        """Find the reward wrappers of an env runner's environments."""
        if not isinstance(episode, SingleAgentEpisode):
            raise TypeError(f"VLPRewardCallback is for single-agent environments, got a {type(episode).__name__}")
        self._envs, self._source, self._samples = env_runner.env, None, None
        try:
            source = LateSource(env_runner.env)
        except ValueError:
            if env_runner.config.in_evaluation:
                return
            raise
        if not source.late:
            return
        if any(isinstance(each, PrevActionsPrevRewards) for each in env_runner._env_to_module.connectors):
            logger.warning(MEDDLING)
            return
        self._source, self._samples = source, _Samples(source, self.timeout_s)
