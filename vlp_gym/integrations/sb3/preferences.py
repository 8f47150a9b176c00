"""Preference-based reinforcement learning with Stable-Baselines3, without a subclass of any algorithm (PEBBLE).

```python
env = VLPRewardWrapper(env, "press the button", mode="async")
model = SAC("MlpPolicy", env, replay_buffer_class=PreferenceReplayBuffer, learning_starts=1_000)
model.learn(100_000, callback=PreferenceCallback(RecordedLabeler()))
```
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.errors import CheckpointError
from vlp_gym.integrations.sb3.relabel import PreferenceReplayBuffer, StateEntropy, fill_replay, replay_tensors
from vlp_gym.integrations.sb3.source import SegmentSource
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.labelers import Labeler, ModelLabeler, ScriptedLabeler, agreement
from vlp_gym.preferences.reward import FitReport, RewardEnsemble
from vlp_gym.preferences.samplers import Sampler, choose_pairs
from vlp_gym.preferences.schedule import Queries
from vlp_gym.preferences.segments import Segments, SegmentStore
from vlp_gym.storage import read_pair, write_pair

# isort: split
# Stable-Baselines3 itself comes last: the import above says which extra is missing.
from gymnasium.spaces import Box
from stable_baselines3.common.callbacks import BaseCallback

logger = logging.getLogger("vlp_gym")


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
        queries: when is it asked about what; None takes the defaults.
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
        queries: Queries | None = None,
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
        self.labeler, self.queries = labeler, queries or Queries()
        self.fit_epochs, self.reset_updates = fit_epochs, reset_updates
        self.hidden, self.standardize = tuple(hidden), standardize
        if reward_std is not None and not 0.0 < reward_std < float("inf"):
            raise ValueError(f"reward_std must be a number above 0, or None, got {reward_std}")
        self.reward_std, self._mean, self._factor = reward_std, 0.0, 1.0
        self.disagreement_bonus, self.semi_supervised = disagreement_bonus, semi_supervised
        self.progress_bar, self.seed = progress_bar, seed
        self.rng = np.random.default_rng(seed)
        keep_tokens = isinstance(labeler, ModelLabeler) and not keep_frames
        self.segments = SegmentStore(
            self.queries.length, self.queries.newest, keep_tokens=keep_tokens, frame_size=keep_frames
        )
        self.preferences = PreferenceBuffer(self.queries.budget)
        self.ensemble: RewardEnsemble | None = None
        self.asked = 0
        """Pairs that the labeler was asked about."""
        self.history: list[dict[str, float]] = []
        """What was logged, session by session."""
        self._next: int | None = None
        self._unfitted = False  # there are labels that the reward has not seen: an interrupt came in between
        self._warned = False
        self._exploration: StateEntropy | None = None
        self._source: SegmentSource | None = None

    def _on_training_start(self) -> None:
        model: Any = self.model
        buffer = getattr(model, "replay_buffer", None)
        if not isinstance(buffer, PreferenceReplayBuffer):
            raise ValueError(
                f"expected a model with replay_buffer_class=PreferenceReplayBuffer, got {type(buffer).__name__}: its "
                "rewards would not be those that are learned"
            )
        if getattr(model, "n_steps", 1) > 1:
            raise ValueError(f"expected n_steps=1, got {model.n_steps}: n-step returns would be of older rewards")
        if model._vec_normalize_env is not None and model._vec_normalize_env.norm_reward:
            raise ValueError(
                "VecNormalize(norm_reward=True) would scale what is learned by the environment's returns; set "
                "norm_reward=False, and PreferenceCallback(reward_std=...) if you want a scale"
            )
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(model, name), Box):
                raise ValueError(f"expected a Box as {name}, got {getattr(model, name)}")
        if self.ensemble is None:
            states, actions = (int(np.prod(space.shape)) for space in (model.observation_space, model.action_space))
            self.ensemble = RewardEnsemble(
                states, actions, hidden=self.hidden, standardize=self.standardize, seed=self.seed
            )
        self.segments.forget_running()
        if model.num_timesteps == 0:
            self._next = self.queries.every if self.history else model.learning_starts + self.queries.explore
        elif self._next is None:
            raise ValueError(
                f"the model has learned for {model.num_timesteps} steps without this callback; call restore(folder, "
                "model) first, or learn with reset_num_timesteps=True"
            )
        self._listen()
        if self._unfitted:
            self._fit(None)
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
        if self.num_timesteps >= self._next and self.asked < self.queries.budget and self._can_ask():
            self.session()
            self._next = self.num_timesteps + self.queries.every
        return True

    def _on_training_end(self) -> None:
        if self._source is not None:
            self._source.disconnect()
            self._source.yield_to_learner(False)

    def _can_ask(self) -> bool:
        """Whether there are two segments to compare, and rows to pay."""
        if self.segments.places(self.queries.newest) >= 2 and self.model.replay_buffer.size():  # type: ignore[attr-defined]
            return True
        if not self._warned:
            logger.warning("queries are due, but no two segments have been finished yet: they come when that is so")
        self._warned = True
        return False

    def session(self) -> None:
        """Ask, learn, and pay what was learned from now on."""
        queries, ensemble = self.queries, self.ensemble
        assert ensemble is not None
        if self._source is not None:
            self._source.wait()
        first_time = not ensemble.fitted
        total = self.locals.get("total_timesteps", self.model._total_timesteps)
        count = min(queries.size(self.num_timesteps, total), queries.budget - self.asked)
        sampler: Sampler = "uniform" if first_time else queries.sampler
        first, second = choose_pairs(
            self.segments, ensemble, count, self.rng,
            sampler=sampler, newest=queries.newest, candidates=queries.candidates, labelled=self.preferences,
        )  # fmt: skip
        labels = self.labeler(first, second)
        foreseen = ensemble.preferences(first, second).mean(0)
        self._unfitted |= bool(self.preferences.add(first, second, labels, soft=True))
        self.asked += count
        row = {
            "step": self.num_timesteps,
            "labels": len(self.preferences),
            "skipped": int(np.isnan(labels).sum()),
            "label_accuracy": agreement(labels, first.returns - second.returns)[0],
            "ensemble_agreement": agreement(foreseen, labels - 0.5)[0],
        }
        unlabelled = None
        if self.semi_supervised and not first_time:
            unlabelled = choose_pairs(
                self.segments, ensemble, 10 * count, self.rng, sampler="uniform", newest=queries.newest, candidates=1
            )
        if self._unfitted:
            report = self._fit(unlabelled)
            row |= {"fit_accuracy": float(np.mean(report.accuracy)), "fit_loss": report.loss}
        self.history.append(row)
        for name in row.keys() - {"step"}:
            self.logger.record(f"pref/{name}", row[name])
        self._pay()
        if first_time and ensemble.fitted and self.reset_updates is not None:
            reset_critic(self.model)
            self.model.train(self.reset_updates, self.model.batch_size)  # type: ignore[attr-defined]

    def _fit(self, unlabelled: tuple[Segments, Segments] | None) -> FitReport:
        assert self.ensemble is not None
        title = f"session {len(self.history) + 1}, {len(self.preferences)} labels"
        with tqdm(total=self.fit_epochs, desc=title, unit="epoch", disable=not self.progress_bar) as bar:

            def show(epoch: int, accuracy: float) -> None:
                bar.set_postfix_str(f"accuracy {accuracy:.2f}", refresh=False)
                bar.update()

            report = self.ensemble.fit(self.preferences, self.fit_epochs, unlabelled=unlabelled, progress=show)
        self._unfitted = False
        self._measure()
        return report

    def reward(self, state: NDArray[Any], action: NDArray[Any]) -> float:
        """What was learned of one observation and one action as the replay buffer keeps it, scaled to [-1, 1].

        0.0 before anything was learned.
        """
        if self.ensemble is None or not self.ensemble.fitted:
            return 0.0
        return float(
            self._learned(*(torch.from_numpy(np.array(x, np.float32)).reshape(1, -1) for x in (state, action)))
        )

    def save(self, folder: str | Path) -> None:
        """Keep segments, labels, the learned reward, the place in the schedule, and the replay buffer, as one.

        Scores that are on their way are waited for. The agent itself is saved by its own `save`, which leaves the
        replay buffer out. Episodes that run, and the transition of this very step, are no part of it.

        Raises:
            CheckpointError: if that cannot be done; what was saved there before is intact.
        """
        if self._source is not None:
            self._source.wait()
        model: Any = self.model
        document: dict[str, Any] = {
            "settings": self._settings(),
            "num_timesteps": model.num_timesteps,  # not our own, which an interrupt can leave one step behind
            "history": [{name: x if np.isfinite(x) else None for name, x in row.items()} for row in self.history],
            "asked": self.asked,
            "reward": [self._mean, self._factor],
            "exploration": None if self._exploration is None else list(self._exploration.moments),
            "unfitted": self._unfitted,
            "next": self._next,
            "rng": self.rng.bit_generator.state,
            "labeler_rng": _generator(self.labeler).bit_generator.state,
        }
        tensors = {f"replay/{name}": tensor for name, tensor in replay_tensors(model.replay_buffer).items()}
        parts: dict[str, Any] = {"segments": self.segments, "preferences": self.preferences, "ensemble": self.ensemble}
        for name, part in parts.items():
            if part is not None:
                document[name], packed = part.pack()
                tensors |= {f"{name}/{key}": tensor for key, tensor in packed.items()}
        write_pair(folder, document, tensors, stem="preferences-run")

    def restore(self, folder: str | Path, model: Any) -> None:
        """Go on from what `save` kept, with the model that was saved beside it.

        ``model = SAC.load(...)``, ``callback.restore(folder, model)``, ``model.learn(..., reset_num_timesteps=False)``.

        Raises:
            CheckpointError: if something is missing or damaged, or belongs to other settings or another model; nothing
                is changed then.
        """
        document, tensors = read_pair(folder, stem="preferences-run")
        for name, ours in self._settings().items():
            if (saved := document["settings"].get(name)) != ours:
                raise CheckpointError(f"{folder}: expected {name}={ours}, but it was saved with {saved}")
        if (step := document["num_timesteps"]) != model.num_timesteps:
            raise CheckpointError(f"{folder}: saved after {step} steps, but the model has {model.num_timesteps}")

        def part(name: str) -> dict[str, torch.Tensor]:
            start = f"{name}/"
            return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}

        segments = SegmentStore.unpack(document["segments"], part("segments"), folder)
        preferences = PreferenceBuffer.unpack(document["preferences"], part("preferences"), folder)
        ensemble = RewardEnsemble.unpack(document["ensemble"], part("ensemble"), folder)
        fill_replay(model.replay_buffer, part("replay"), folder)
        self.segments, self.preferences, self.ensemble = segments, preferences, ensemble
        self.history = [
            {name: float("nan") if x is None else x for name, x in row.items()} for row in document["history"]
        ]
        self.asked, self._next, self._unfitted = document["asked"], document["next"], document["unfitted"]
        self._mean, self._factor = document["reward"]
        self._exploration = StateEntropy(model.replay_buffer, seed=self.seed)
        self._exploration.moments = tuple(document["exploration"] or self._exploration.moments)
        self.rng.bit_generator.state = document["rng"]
        _generator(self.labeler).bit_generator.state = document["labeler_rng"]

    def _settings(self) -> dict[str, Any]:
        """What must not change between `save` and `restore`."""
        names = ("fit_epochs", "standardize", "reset_updates", "reward_std", "disagreement_bonus", "semi_supervised")
        store = {"keep_tokens": self.segments.keep_tokens, "keep_frames": self.segments.frame_size}
        same = {name: getattr(self, name) for name in names}
        return {**asdict(self.queries), "hidden": list(self.hidden), "seed": self.seed, **same, **store}

    def _pay(self) -> None:
        """Tell the replay buffer what to pay."""
        model: Any = self.model
        buffer: PreferenceReplayBuffer = model.replay_buffer
        if self.ensemble is not None and self.ensemble.fitted:
            buffer.pay(self._reward, lasting=self.disagreement_bonus == 0.0)
            return
        if self._exploration is None or self._exploration.buffer is not buffer:
            self._exploration = StateEntropy(buffer, seed=self.seed)
        buffer.pay(self._exploration, lasting=False)

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

    def _listen(self) -> None:
        """Keep what the reward model says and sees, where there is one."""
        self._source = None
        source = SegmentSource(self.training_env)
        if not any(source.wrapped):
            return
        if isinstance(self.labeler, ScriptedLabeler) and source.in_process and not source.ticketed:
            return  # which asks no model
        source.find_engines()
        asks = self.labeler.engine if isinstance(self.labeler, ModelLabeler) else None
        if asks is not None and self.segments.keep_tokens and asks not in source.engines:
            raise ValueError(
                "the labeler's model is not the one whose frame tokens are kept; give ModelLabeler the engine of the "
                "wrapper (env.engine), or PreferenceCallback(keep_frames=112)"
            )
        source.connect(self.segments)
        source.yield_to_learner(True)
        self._source = source


def _generator(labeler: Any) -> np.random.Generator:
    """What a labeler draws its mistakes from; one that draws nothing has some other."""
    return getattr(labeler, "rng", None) or np.random.default_rng(0)


def reset_critic(model: Any) -> None:
    """Give the critic of an off-policy model new random weights, and its optimizer a new start; the actor stays."""
    shared = model.actor.features_extractor if model.policy.share_features_extractor else None
    model.critic.load_state_dict(model.policy.make_critic(features_extractor=shared).state_dict())
    target = getattr(model, "critic_target", None)
    if target is not None:
        target.load_state_dict(model.critic.state_dict())
    model.critic.optimizer.state.clear()
