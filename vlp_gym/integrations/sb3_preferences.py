"""Preference-based reinforcement learning with Stable-Baselines3, without a subclass of any algorithm (PEBBLE).

```python
env = VLPRewardWrapper(env, "press the button", mode="async")
model = SAC("MlpPolicy", env, replay_buffer_class=PreferenceReplayBuffer, learning_starts=1_000)
model.learn(100_000, callback=PreferenceCallback(RecordedLabeler()))
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.answers import Answer
from vlp_gym.engine import QueryEngine
from vlp_gym.errors import CheckpointError
from vlp_gym.integrations.sb3_relabel import PreferenceReplayBuffer, StateEntropy, fill_replay, replay_tensors
from vlp_gym.integrations.sb3_source import find_vector
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.ensemble import RewardEnsemble
from vlp_gym.preferences.labelers import Labeler, agreement
from vlp_gym.preferences.samplers import Sampler, choose_pairs
from vlp_gym.preferences.segments import SegmentStore
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.wrappers.single import VLPRewardWrapper

# isort: split
# Stable-Baselines3 itself comes last: the import above says which extra is missing.
from gymnasium.spaces import Box
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

Schedule = Literal["constant", "decaying", "increasing"]


@dataclass(frozen=True)
class Queries:
    """When is who asked about what.

    Attributes:
        budget: labels altogether.
        session: pairs of one session, before the schedule.
        every: steps between two sessions.
        explore: steps of unsupervised exploration after the agent's ``learning_starts``; then comes the first session.
        schedule: "constant", or sessions that become smaller or larger by the share of steps that is left (B-Pref).
        sampler: which pairs; the first session is always "uniform".
        newest: episodes that pairs are taken from.
        candidates: pairs drawn for each that is chosen.
        length: steps of a segment.
    """

    budget: int = 1_000
    session: int = 50
    every: int = 5_000
    explore: int = 9_000
    schedule: Schedule = "constant"
    sampler: Sampler = "disagreement"
    newest: int = 100
    candidates: int = 10
    length: int = 50

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, got {self.schedule!r}")
        for name in ("budget", "session", "every", "newest", "candidates", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.explore < 0:
            raise ValueError(f"explore must be at least 0, got {self.explore}")

    def size(self, step: int, total_steps: int) -> int:
        """Pairs of a session at this step (B-Pref: the share of steps left, or its inverse)."""
        left = max(total_steps - step, 0) + 1
        factor = {"constant": 1.0, "decaying": left / (total_steps + 1), "increasing": (total_steps + 1) / left}
        return max(int(self.session * factor[self.schedule]), 1)


class PreferenceCallback(BaseCallback):
    """Learns a reward from preferences while the agent learns from it (PEBBLE, Lee et al. 2021).

    After the agent's ``learning_starts`` random steps it explores for ``queries.explore`` steps, paid for states that
    are far from others; then come sessions: pairs of segments are chosen and labelled, r(s, a) is fitted, and from then
    on the replay buffer pays it, for old rows as for new ones. After the first session the critic begins anew.

    Where the environment is wrapped by `VLPRewardWrapper` or `VLPVecReward` in the mode "async", scores and frame
    tokens are kept for the labeler. The environment's own reward is kept for scripted labelers and for
    ``pref/label_accuracy``.

    Logged at each session: ``pref/labels``, ``pref/skipped``, ``pref/label_accuracy`` (share of labels that the
    environment's own returns agree with), ``pref/ensemble_agreement`` (share of the new labels that the reward said
    before it saw them), ``pref/fit_accuracy``, ``pref/fit_loss``.

    Args:
        labeler: says which of two segments is better.
        queries: when is it asked about what.
        fit_epochs: of the reward at each session, at most; it stops at an accuracy of 0.97.
        reset_updates: gradient steps of the agent after its critic was reset; None: no reset.
        hidden, standardize: of the reward, see `RewardEnsemble`.
        reward_std: shift and scale what was learned at each session, so that over the replay buffer it has the mean 0
            and this standard deviation (Christiano et al. 2017): labels say nothing of either. None pays it as it is.
        disagreement_bonus: weight of the standard deviation over the members at the first step; it falls to 0 (RUNE).
        semi_supervised: also learn from unlabelled pairs that the reward is sure of (SURF).
        keep_frames: keep frames as squares of so many pixels too, for people who label; 0 keeps none.
        progress_bar: show the fitting of a session.
        seed: of everything that is drawn here.
        verbose: Stable-Baselines3's.
    """

    def __init__(
        self,
        labeler: Labeler,
        queries: Queries = Queries(),
        *,
        fit_epochs: int = 10,
        hidden: Sequence[int] = (256, 256, 256),
        standardize: bool = True,
        reset_updates: int | None = 100,
        reward_std: float | None = None,
        disagreement_bonus: float = 0.0,
        semi_supervised: bool = False,
        keep_frames: int = 0,
        progress_bar: bool = False,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.labeler, self.queries = labeler, queries
        self.fit_epochs, self.reset_updates = fit_epochs, reset_updates
        self.hidden, self.standardize = tuple(hidden), standardize
        if reward_std is not None and not 0.0 < reward_std < float("inf"):
            raise ValueError(f"reward_std must be a number above 0, or None, got {reward_std}")
        self.reward_std, self._mean, self._factor = reward_std, 0.0, 1.0
        self.disagreement_bonus, self.semi_supervised = disagreement_bonus, semi_supervised
        self.progress_bar, self.seed = progress_bar, seed
        self.rng = np.random.default_rng(seed)
        self.segments = SegmentStore(queries.length, queries.newest, frame_size=keep_frames)
        self.preferences = PreferenceBuffer(max(queries.budget, 1))
        self.ensemble: RewardEnsemble | None = None
        self.asked = 0
        """Pairs that the labeler was asked about."""
        self.history: list[dict[str, float]] = []
        """What was logged, session by session."""
        self._next: int | None = None
        self._engines: list[QueryEngine] = []

    def _on_training_start(self) -> None:
        model: Any = self.model
        buffer = getattr(model, "replay_buffer", None)
        if not isinstance(buffer, PreferenceReplayBuffer):
            raise ValueError(
                f"expected a model with replay_buffer_class=PreferenceReplayBuffer, got {type(buffer).__name__}: its "
                "rewards would not be those that are learned"
            )
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(model, name), Box):
                raise ValueError(f"expected a Box as {name}, got {getattr(model, name)}")
        if self.ensemble is None:
            states, actions = (int(np.prod(space.shape)) for space in (model.observation_space, model.action_space))
            self.ensemble = RewardEnsemble(
                states, actions, hidden=self.hidden, standardize=self.standardize, seed=self.seed
            )
        if model.num_timesteps == 0:  # the environments have been reset
            self.segments.forget_running()
            self._next = self.queries.every if self.history else model.learning_starts + self.queries.explore
        self._listen(self.training_env)
        self._pay()

    def _on_step(self) -> bool:
        step = self.locals
        model: Any = self.model
        states = model._last_obs if model._vec_normalize_env is None else model._last_original_obs
        for env in range(model.n_envs):
            told = step["infos"][env].get("vlp")
            own = step["rewards"][env] if told is None else told["env_reward"]
            ticket = None if told is None else told.get("ticket")
            if ticket is not None:
                ticket = ticket._replace(env=env)
            self.segments.add(env, states[env], step["buffer_actions"][env], np.nan if own is None else own, ticket)
            if step["dones"][env]:
                self.segments.end(env)
        assert self._next is not None
        if self.num_timesteps >= self._next and len(self.segments) and self.asked < self.queries.budget:
            self._next = self.num_timesteps + self.queries.every
            self.session()
        return True

    def _on_training_end(self) -> None:
        self._yield_to_learner(False)
        for engine in self._engines:
            engine.on_answer = None

    def session(self) -> None:
        """Ask, learn, and pay what was learned from now on."""
        queries, ensemble = self.queries, self.ensemble
        assert ensemble is not None
        for engine in self._engines:
            engine.wait()
        first_time = not self.history
        total = self.locals.get("total_timesteps", self.model._total_timesteps)
        count = min(queries.size(self.num_timesteps, total), queries.budget - self.asked)
        sampler: Sampler = "uniform" if first_time else queries.sampler
        first, second = choose_pairs(
            self.segments, ensemble, count, self.rng,
            sampler=sampler, newest=queries.newest, candidates=queries.candidates, labelled=self.preferences,
        )  # fmt: skip
        labels = self.labeler(first, second)
        foreseen = ensemble.preferences(first, second).mean(0)
        self.preferences.add(first, second, labels, soft=True)
        self.asked += count
        unlabelled = None
        if self.semi_supervised and not first_time:
            unlabelled = choose_pairs(
                self.segments, ensemble, 10 * count, self.rng, sampler="uniform", newest=queries.newest, candidates=1
            )
        row = {
            "step": self.num_timesteps,
            "labels": len(self.preferences),
            "skipped": int(np.isnan(labels).sum()),
            "label_accuracy": agreement(labels, first.returns - second.returns)[0],
            "ensemble_agreement": agreement(foreseen, labels - 0.5)[0],
        }
        if len(self.preferences):
            title = f"session {len(self.history) + 1}, {len(self.preferences)} labels"
            with tqdm(total=self.fit_epochs, desc=title, unit="epoch", disable=not self.progress_bar) as bar:

                def show(epoch: int, accuracy: float) -> None:
                    bar.set_postfix_str(f"accuracy {accuracy:.2f}", refresh=False)
                    bar.update()

                report = ensemble.fit(self.preferences, self.fit_epochs, unlabelled=unlabelled, progress=show)
            self._measure()
            row |= {"fit_accuracy": float(np.mean(report.accuracy)), "fit_loss": float(np.mean(report.loss))}
        self.history.append(row)
        for name in row.keys() - {"step"}:
            self.logger.record(f"pref/{name}", row[name])
        self._pay()
        if first_time and self.reset_updates is not None:
            reset_critic(self.model)
            self.model.train(self.reset_updates, self.model.batch_size)  # type: ignore[attr-defined]

    def reward(self, state: NDArray[Any], action: NDArray[Any]) -> float:
        """What is paid now for one observation and one action as the replay buffer keeps it, scaled to [-1, 1]."""
        rows = (torch.from_numpy(np.array(each, np.float32)).reshape(1, -1) for each in (state, action))
        return 0.0 if self.ensemble is None else float(self._learned(*rows))

    def save(self, folder: str | Path) -> None:
        """Keep segments, labels, the learned reward, the place in the schedule, and the replay buffer.

        The agent itself is saved by its own `save`, which leaves the replay buffer out.

        Raises:
            CheckpointError: if that cannot be done.
        """
        self.segments.save(folder)
        self.preferences.save(folder)
        if self.ensemble is not None:
            self.ensemble.save(folder)
        state = {
            "queries": asdict(self.queries),
            "history": [
                {name: value if np.isfinite(value) else None for name, value in row.items()} for row in self.history
            ],
            "asked": self.asked,
            "reward": [self._mean, self._factor],
            "next": self._next,
            "rng": self.rng.bit_generator.state,
        }
        write_pair(folder, state, replay_tensors(self.model.replay_buffer), stem="replay")  # type: ignore[attr-defined]

    def restore(self, folder: str | Path, model: Any) -> None:
        """Go on from what `save` kept, with the model that was saved beside it.

        ``model = SAC.load(...)``, ``callback.restore(folder, model)``, ``model.learn(..., reset_num_timesteps=False)``.

        Raises:
            CheckpointError: if something is missing or damaged, or belongs to other queries or another model.
        """
        state, replay = read_pair(folder, stem="replay")
        if (saved := state["queries"]) != asdict(self.queries):
            raise CheckpointError(f"{folder}: expected {asdict(self.queries)}, but it was saved with {saved}")
        segments, preferences = SegmentStore.load(folder), PreferenceBuffer.load(folder)
        ensemble = RewardEnsemble.load(folder) if (Path(folder) / "ensemble.json").exists() else None
        fill_replay(model.replay_buffer, replay, folder)
        self.segments, self.preferences, self.ensemble = segments, preferences, ensemble
        self.history = [
            {name: float("nan") if value is None else value for name, value in row.items()} for row in state["history"]
        ]
        self.asked, self._next = state["asked"], state["next"]
        self._mean, self._factor = state["reward"]
        self.rng.bit_generator.state = state["rng"]

    def _pay(self) -> None:
        """Tell the replay buffer what to pay."""
        model: Any = self.model
        buffer: PreferenceReplayBuffer = model.replay_buffer
        if self.history:
            buffer.pay(self._reward, lasting=self.disagreement_bonus == 0.0)
        else:
            buffer.pay(StateEntropy(buffer, seed=self.seed), lasting=False)

    def _learned(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        assert self.ensemble is not None
        return (self.ensemble.predict(states, actions) - self._mean) * self._factor

    def _measure(self) -> None:
        """Mean and deviation of what was learned, over rows spread over the replay buffer."""
        buffer = self.model.replay_buffer  # type: ignore[attr-defined]
        if self.reward_std is None or self.ensemble is None or not buffer.size():
            return
        rows = np.unique(np.linspace(0, buffer.size() - 1, 4096).astype(int))
        states, actions = (
            buffer.to_torch(block[rows]).flatten(0, 1) for block in (buffer.observations, buffer.actions)
        )
        rewards = self.ensemble.predict(states.flatten(1), actions)
        self._mean, self._factor = float(rewards.mean()), self.reward_std / max(float(rewards.std()), 1e-8)

    def _reward(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        assert self.ensemble is not None
        reward = self._learned(states, actions)
        left = 1.0 - self.num_timesteps / max(self.model._total_timesteps, 1)
        if self.disagreement_bonus > 0.0 and left > 0.0:
            reward = reward + self.disagreement_bonus * left * self.ensemble.bonus(states, actions)
        return reward

    def _listen(self, venv: VecEnv) -> None:
        """Keep what the reward model says and sees, where there is one."""
        vector = find_vector(venv)
        if vector is None and not any(venv.env_is_wrapped(VLPRewardWrapper)):
            return
        if vector is None and not isinstance(venv.unwrapped, DummyVecEnv):
            raise ValueError(
                "the environments look at their frames in other processes, where their scores cannot be kept; use "
                "capture_frames and VLPVecReward around the SubprocVecEnv"
            )
        infos = (vector or venv.unwrapped).reset_infos
        if not all("ticket" in info.get("vlp", {}) for info in infos):
            raise ValueError('expected the wrapper in mode="async", whose steps have tickets')
        engines = [vector.engine] * venv.num_envs if vector is not None else venv.get_attr("engine")
        ears: dict[QueryEngine, _Ear] = {}
        for place, (engine, info) in enumerate(zip(engines, infos, strict=True)):
            ears.setdefault(engine, _Ear(self.segments, {})).places[info["vlp"]["ticket"].env] = place
        for engine, ear in ears.items():
            engine.on_answer = ear
        self._engines = list(ears)
        self._yield_to_learner(True)

    def _yield_to_learner(self, on: bool) -> None:
        vector = find_vector(self.training_env)
        if vector is not None:
            vector.yield_to_learner(on)
        elif self._engines:
            self.training_env.env_method("yield_to_learner", on)


@dataclass(frozen=True)
class _Ear:
    """Gives what one engine answers to the segments, under the number that the environment has there."""

    segments: SegmentStore
    places: dict[int, int]

    def __call__(self, answer: Answer, frames: NDArray[np.uint8], tokens: torch.Tensor) -> None:
        place = self.places.get(answer.ticket.env)
        if place is not None:
            self.segments.see(answer._replace(ticket=answer.ticket._replace(env=place)), frames, tokens)


def reset_critic(model: Any) -> None:
    """Give the critic of an off-policy model new random weights, and its optimizer a new start; the actor stays."""
    shared = model.actor.features_extractor if model.policy.share_features_extractor else None
    model.critic.load_state_dict(model.policy.make_critic(features_extractor=shared).state_dict())
    target = getattr(model, "critic_target", None)
    if target is not None:
        target.load_state_dict(model.critic.state_dict())
    model.critic.optimizer.state.clear()
