"""Preference-based reinforcement learning (PEBBLE) with any off-policy algorithm of Stable-Baselines3.

```python
env = VLPRewardWrapper(env, "press the button", mode="async")
model = SAC("MlpPolicy", env, replay_buffer_class=PreferenceReplayBuffer, learning_starts=1_000)
model.learn(100_000, callback=PreferenceCallback(RecordedLabeler()))
```
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pydantic import Field
from stable_baselines3.common.callbacks import BaseCallback

from vlp_gym.errors import CheckpointError
from vlp_gym.integrations.sb3.relabel import PreferenceReplayBuffer, check_replay, fill_replay, replay_tensors
from vlp_gym.integrations.sb3.source import SegmentSource
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.exploration import StateEntropy
from vlp_gym.preferences.labelers import Labeler, ScriptedLabeler
from vlp_gym.preferences.learner import MEASURED, PreferenceLearner
from vlp_gym.preferences.reward import RewardEnsemble
from vlp_gym.preferences.saved import SavedLearner, check_settings
from vlp_gym.preferences.schedule import Queries
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.rewards.info import ours_in, ticket_in
from vlp_gym.schema import Count, below
from vlp_gym.storage import document_name, read_pair, write_pair


class _SavedRun(SavedLearner):
    num_timesteps: Count
    exploration: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=3, max_length=3)] | None


def _of_learner(name: str) -> Any:
    return property(attrgetter(f"learner.{name}"), doc=f"`PreferenceLearner.{name}`")


class PreferenceCallback(BaseCallback):
    """Runs a `PreferenceLearner` while the agent learns from its reward (PEBBLE, Lee et al., 2021).

    After the agent's ``learning_starts`` random steps it explores for ``queries.explore`` steps with the reward of
    `StateEntropy`. Then sessions begin: each gives the replay buffer the rewards of the newly fitted r(s, a), in old
    rows and new ones, and logs its figures as ``pref/...``, see `PreferenceLearner.session`. After the first session
    the critic gets new random weights.

    If the environment is wrapped by `VLPRewardWrapper` or `VLPVecReward` in the mode "async", scores and frame tokens
    are kept for the labeler.

    Args:
        labeler: as `PreferenceLearner` has it.
        queries: the same.
        reset_updates: gradient steps of the agent after its critic was reset; None: no reset.
        judge: says from a step's info how good the state after it is, so that ``pref/judged_accuracy`` tells how many
            labels are right; nothing learns from it. Meta-World's is `vlp_gym.metaworld.judge.judge_state`.
        verbose: as in every callback of Stable-Baselines3.
        options: other arguments of `PreferenceLearner`. The mean and deviation for reward_std are taken over the
            replay buffer, and disagreement_bonus falls to 0 at the last step.

    Attributes:
        learner: the `PreferenceLearner`; some of its attributes are also attributes of the callback.

    Raises:
        ValueError: at the start of the training, if model or environment do not fit.
    """

    queries: Queries = _of_learner("queries")
    segments: SegmentStore = _of_learner("segments")
    preferences: PreferenceBuffer = _of_learner("preferences")
    ensemble: RewardEnsemble | None = _of_learner("ensemble")
    asked: int = _of_learner("asked")
    history: list[dict[str, float]] = _of_learner("history")

    def __init__(
        self,
        labeler: Labeler,
        queries: Queries | None = None,
        *,
        reset_updates: int | None = 100,
        judge: Callable[[dict[str, Any]], float] | None = None,
        verbose: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(verbose)
        self.judge = judge
        self.learner = PreferenceLearner(labeler, queries, **options)
        self.reset_updates = reset_updates
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
        if model.num_timesteps and self.learner.next_session is None:
            raise ValueError(
                f"the model has learned for {model.num_timesteps} steps without this callback; call restore(folder, "
                "model) first, or learn with reset_num_timesteps=True"
            )
        interrupted = self.learner.unfitted
        self.learner.start(*_sizes(model), step=model.num_timesteps, random_steps=model.learning_starts)
        self._listen()  # only now: `start` has dropped the answers to earlier episodes
        if interrupted:
            self._measure()
        self._set_reward()

    def _on_step(self) -> bool:
        step = self.locals
        model: Any = self.model
        states = model._last_obs if model._vec_normalize_env is None else model._last_original_obs
        for env in range(model.n_envs):
            info = ours_in(step["infos"][env])
            own = step["rewards"][env] if info is None else info["env_reward"]
            ticket = ticket_in(info)
            if ticket is not None:
                ticket = ticket._replace(env=env)
            value = float("nan") if self.judge is None else self.judge(step["infos"][env])
            self.learner.add_step(env, states[env], step["buffer_actions"][env], own, step["dones"][env], ticket, value)
        if self._source is not None:
            self._source.discard_rewards()  # the buffer has those that are learned
        if self.learner.due(self.num_timesteps) and model.replay_buffer.size():
            self.session()
        return True

    def _on_training_end(self) -> None:
        if self._source is not None:
            self._source.disconnect()
            self._source.yield_to_learner(False)

    def session(self) -> None:
        """Ask for labels, fit the reward, and give it to the replay buffer."""
        model: Any = self.model
        if self._source is not None:
            self._source.wait()
        first_time = not self.learner.fitted
        row = self.learner.session(self.num_timesteps, self.locals.get("total_timesteps", model._total_timesteps))
        for name in row.keys() - {"step"}:
            self.logger.record(f"pref/{name}", row[name])
        if "fit_loss" in row:
            self._measure()
        self._set_reward()
        if first_time and self.learner.fitted and self.reset_updates is not None:
            reset_critic(model)
            model.train(self.reset_updates, model.batch_size)

    def reward(self, state: NDArray[Any], action: NDArray[Any]) -> float:
        """The learned reward of one observation and one action as the replay buffer keeps it, scaled to [-1, 1].

        0.0 before anything was learned.
        """
        rows = (torch.from_numpy(np.array(x, np.float32)).reshape(1, -1) for x in (state, action))
        return float(self.learner.reward(*rows))

    def save(self, folder: str | Path) -> None:
        """Save the learner, the exploration and the replay buffer, or raise CheckpointError.

        Pending scores are waited for. Save the agent by its own `save`, which leaves the replay buffer out. Running
        episodes, and the transition of this very step, are not saved.
        """
        if self._source is not None:
            self._source.wait()
        model: Any = self.model
        document, tensors = self.learner.pack()
        document["settings"]["reset_updates"] = self.reset_updates
        document["num_timesteps"] = model.num_timesteps  # not our own, which an interrupt can leave one step behind
        document["exploration"] = None if self._exploration is None else list(self._exploration.moments)
        tensors |= {f"replay/{name}": tensor for name, tensor in replay_tensors(model.replay_buffer).items()}
        where = f"{folder} was not saved"
        _, learner, others, _ = self._split(document, tensors, model, where)
        self.learner.check(learner, others, where, _sizes(model))
        write_pair(folder, document, tensors, stem="preferences-run")

    def restore(self, folder: str | Path, model: Any) -> None:
        """Go on from what `save` wrote, with the model that was saved beside it.

        ``model = SAC.load(...)``, ``callback.restore(folder, model)``, ``model.learn(..., reset_num_timesteps=False)``.

        Raises:
            CheckpointError: as `PreferenceLearner.restore`, or for another model; nothing is changed then.
        """
        where = Path(folder) / document_name("preferences-run")
        saved, learner, others, rows = self._split(*read_pair(folder, stem="preferences-run"), model, where)
        self.learner.unpack(learner, others, where, _sizes(model))
        fill_replay(model.replay_buffer, rows)
        self._exploration = StateEntropy(model.replay_buffer.draw_states, seed=self.learner.seed)
        if saved.exploration is not None:
            count, mean, square = saved.exploration
            self._exploration.moments = (int(count), mean, square)

    def _split(
        self, document: dict[str, Any], tensors: dict[str, torch.Tensor], model: Any, where: str | Path
    ) -> tuple[_SavedRun, dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A run that fits the model; the document and tensors of its learner, still to be checked, and the replay's."""
        saved = _SavedRun.parse(document, where)
        settings = dict(saved.settings)
        check_settings(
            {"reset_updates": self.reset_updates}, {"reset_updates": settings.pop("reset_updates", None)}, where
        )
        if saved.num_timesteps != model.num_timesteps:
            raise CheckpointError(
                f"{where}: saved after {saved.num_timesteps} steps, but the model has {model.num_timesteps}"
            )
        if saved.exploration is not None and not saved.exploration[0].is_integer():
            raise CheckpointError(f"{where}: exploration.0: expected an integer, got {saved.exploration[0]:g}")
        rows = below(tensors, "replay/")
        check_replay(model.replay_buffer, rows, where)
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith("replay/")}
        learner = saved.model_dump(exclude_unset=True, exclude={"num_timesteps", "exploration"})
        return saved, {**learner, "settings": settings}, others, rows

    def _measure(self) -> None:
        """Take mean and deviation of the learned reward over rows spread over the replay buffer."""
        buffer = self.model.replay_buffer  # type: ignore[attr-defined]
        if buffer.size():
            rows = np.unique(np.linspace(0, buffer.size() - 1, MEASURED).astype(int))
            states, actions = (
                buffer.to_torch(block[rows]).flatten(0, 1) for block in (buffer.observations, buffer.actions)
            )
            self.learner.measure(states.flatten(1), actions)

    def _set_reward(self) -> None:
        """Give the replay buffer the learned reward; before there is one, that of exploration."""
        buffer: PreferenceReplayBuffer = self.model.replay_buffer  # type: ignore[attr-defined]
        if self.learner.fitted:
            buffer.set_reward(self._learned, lasting=self.learner.disagreement_bonus == 0.0)
            return
        if self._exploration is None or self._exploration.draw != buffer.draw_states:
            self._exploration = StateEntropy(buffer.draw_states, seed=self.learner.seed)
        buffer.set_reward(self._exploration, lasting=False)

    def _learned(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        left = 1.0 - self.num_timesteps / max(self.model._total_timesteps, 1)
        return self.learner.reward(states, actions, left=left)

    def _listen(self) -> None:
        """Connect the engines of the environments, if there are any, to the segments."""
        self._source = None
        source = SegmentSource(self.training_env)
        if not any(source.wrapped):
            return
        labeler = self.learner.labeler
        if isinstance(labeler, ScriptedLabeler) and source.in_process and not source.ticketed:
            return  # a scripted labeler asks no model
        source.find_engines()
        self.learner.check_engines(source.engines)
        source.connect(self.segments.on_answer)
        source.yield_to_learner(True)
        self._source = source


def _sizes(model: Any) -> tuple[int, int]:
    """Numbers in an observation and in an action."""
    return int(np.prod(model.observation_space.shape)), int(np.prod(model.action_space.shape))


def reset_critic(model: Any) -> None:
    """Give the critic of an off-policy model new random weights, and its optimizer a new start; the actor stays."""
    shared = model.actor.features_extractor if model.policy.share_features_extractor else None
    model.critic.load_state_dict(model.policy.make_critic(features_extractor=shared).state_dict())
    target = getattr(model, "critic_target", None)
    if target is not None:
        target.load_state_dict(model.critic.state_dict())
    model.critic.optimizer.state.clear()
