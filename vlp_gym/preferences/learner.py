"""A reward learned from preferences, for any training loop: choose pairs, label them, fit r(s, a), pay it, save it.

The loop reports each step, holds a session when one is due, and reads the learned reward:

    >>> from vlp_gym.preferences import PreferenceLearner, Queries, ScriptedLabeler
    >>> queries = Queries(budget=12, session=6, every=20, explore=20, length=4)
    >>> learner = PreferenceLearner(ScriptedLabeler(), queries, hidden=(16,))
    >>> learner.start(state_size=1, action_size=1)
    >>> rng = np.random.default_rng(0)
    >>> for step in range(1, 61):  # the farther to the right, the more the environment pays
    ...     place, move = rng.uniform(-1, 1, (2, 1))
    ...     learner.add_step(0, place, move, reward=place[0], done=step % 10 == 0)
    ...     if learner.due(step):
    ...         row = learner.session(step, total_steps=60)
    >>> row["labels"], learner.reward(torch.zeros(3, 1), torch.zeros(3, 1)).shape
    (12, torch.Size([3]))

To label with a reward model, set ``env.engine.on_answer = learner.segments.on_answer``, give `add_step` the wrapper's
``env.ticket``, call ``env.poll()`` after each step, and ``env.engine.wait()`` before a session.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.cascade import CascadeLabeler, gate_of
from vlp_gym.preferences.correction import Correction
from vlp_gym.preferences.labelers import Labeler, ModelLabeler, agreement, as_labels, check_labeler
from vlp_gym.preferences.reward import FitReport, RewardEnsemble
from vlp_gym.preferences.samplers import Sampler, choose_pairs
from vlp_gym.preferences.saved import PARTS, Parts, SavedLearner, check_settings, unpack_parts
from vlp_gym.preferences.schedule import Queries
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.preferences.segments import Segments
from vlp_gym.schema import check_generator, generator_state
from vlp_gym.storage import document_name, read_pair, write_pair

MEASURED = 4096  # steps that mean and deviation of the reward are taken over
Array = NDArray[Any]
logger = logging.getLogger("vlp_gym")


class PreferenceLearner:
    """Learns a reward from preferences while an agent acts (PEBBLE, Lee et al., 2021).

    Until the first session the agent explores, for example with the reward of `StateEntropy`. An agent with a replay
    buffer gives its old transitions the new reward after each session.

    Args:
        labeler: labels pairs of segments.
        queries: the labelling schedule; None takes the defaults.
        fit_epochs: most epochs of a fit; it stops at an accuracy of 0.97.
        hidden: see `RewardEnsemble`.
        standardize: see there.
        reward_std: shift and scale the learned reward to mean 0 and this standard deviation at each session, since
            labels determine neither (Christiano et al., 2017); see `measure`. None leaves it as it is.
        disagreement_bonus: weight of the members' standard deviation, see `reward` (RUNE, Liang et al., 2022).
        semi_supervised: also learn from unlabelled pairs that the members are sure of (SURF, Park et al., 2022).
        keep_frames: side length in pixels of the stored square frames, for people who label; 0 stores none.
        progress_bar: show the progress of each fit.
        seed: seeds the choice of pairs and the ensemble.

    Attributes:
        segments: the newest episodes.
        preferences: the labelled pairs.
        ensemble: the networks; None before `start`.
        asked: pairs that the labeler was asked about.
        history: the rows that `session` returned.
        next_session: first step at which the next session is due; None before `start`.
        unfitted: whether there are labels that an interrupt kept a session from fitting; `start` fits them.

    Raises:
        ValueError: if reward_std is not above 0.
    """

    def __init__(
        self,
        labeler: Labeler,
        queries: Queries | None = None,
        *,
        fit_epochs: int = 10,
        hidden: Sequence[int] = (256, 256, 256),
        standardize: bool = True,
        reward_std: float | None = None,
        disagreement_bonus: float = 0.0,
        semi_supervised: bool = False,
        keep_frames: int = 0,
        progress_bar: bool = False,
        seed: int = 0,
    ) -> None:
        if reward_std is not None and not 0.0 < reward_std < float("inf"):
            raise ValueError(f"reward_std must be a number above 0, or None, got {reward_std}")
        check_labeler(labeler)
        parts = (labeler.small, labeler.large) if isinstance(labeler, CascadeLabeler) else ()
        if not keep_frames and any(isinstance(part, ModelLabeler) for part in parts):
            raise ValueError("the models of a cascade look at frames, each at its own tokens; give keep_frames=112")
        self.labeler, self.queries = labeler, queries or Queries()
        self.fit_epochs, self.hidden, self.standardize = fit_epochs, tuple(hidden), standardize
        self.reward_std, self._mean, self._factor = reward_std, 0.0, 1.0
        self.disagreement_bonus, self.semi_supervised = disagreement_bonus, semi_supervised
        self.progress_bar, self.seed = progress_bar, seed
        self.rng = np.random.default_rng(seed)
        keep_tokens = isinstance(labeler, ModelLabeler) and not keep_frames
        kept = self.queries.length, self.queries.newest
        self.segments = SegmentStore(*kept, keep_tokens=keep_tokens, frame_size=keep_frames)
        self.preferences = PreferenceBuffer(self.queries.budget)
        self.ensemble: RewardEnsemble | None = None
        self.asked = 0
        self.history: list[dict[str, float]] = []
        self.next_session: int | None = None
        self.unfitted = False
        self._warned = False

    @property
    def fitted(self) -> bool:
        """Whether a reward was learned: a session had at least one label."""
        return self.ensemble is not None and self.ensemble.fitted

    @property
    def correction(self) -> Correction | None:
        """What a cascade has learned from the answers of its larger labeler; None for another labeler."""
        return self.labeler.correction if isinstance(self.labeler, CascadeLabeler) else None

    def start(self, state_size: int, action_size: int, *, step: int = 0, random_steps: int = 0) -> None:
        """Begin, or go on after `restore` or an interrupt; running episodes are dropped.

        Args:
            state_size: S, numbers in a state.
            action_size: A, numbers in an action.
            step: steps the agent has made; 0 begins a new schedule.
            random_steps: steps before exploration begins (the agent's ``learning_starts``).

        Raises:
            ValueError: for a step above 0 if there is no schedule to go on with.
        """
        if step and self.next_session is None:
            raise ValueError(f"expected to start at step 0, or to restore(folder) first, got step {step}")
        if self.ensemble is None:
            self.ensemble = RewardEnsemble(
                state_size, action_size, hidden=self.hidden, standardize=self.standardize, seed=self.seed
            )
        self.segments.forget_running()
        if step == 0:
            self.next_session = self.queries.every if self.history else random_steps + self.queries.explore
        self._fit(self.ensemble, None)

    def check_engines(self, engines: Collection[QueryEngine]) -> None:
        """Raise ValueError unless the labeler's model fits the engines whose answers are kept."""
        asked = self.labeler.engine if isinstance(self.labeler, ModelLabeler) else None
        if asked is not None and self.segments.keep_tokens and asked not in engines:
            raise ValueError(
                "the labeler's model is not the one whose frame tokens are kept; give ModelLabeler the engine of the "
                "wrapper (env.engine), or let frames be kept (keep_frames=112)"
            )

    def add_step(
        self,
        env: int,
        state: Array,
        action: Array,
        reward: float,
        done: bool,
        ticket: Ticket | None = None,
        value: float = float("nan"),
    ) -> None:
        """Add one step of an environment: arguments as `SegmentStore.add`, and whether it ends the episode.

        The environment's own reward is for scripted labelers and ``label_accuracy`` only, a judge's value for
        ``judged_accuracy``.
        """
        self.segments.add(env, state, action, reward, ticket, value)
        if done:
            self.segments.end(env)

    def due(self, step: int) -> bool:
        """Whether to hold a session after this step: it is time, there is budget left, and there are two segments."""
        if self.next_session is None:
            raise ValueError("expected start(state_size, action_size) before the first step")
        if step < self.next_session or self.asked >= self.queries.budget:
            return False
        ready = self.segments.places(self.queries.newest) >= 2
        if not ready and not self._warned:
            logger.warning("queries are due, but no two segments have been finished yet: they come when that is so")
            self._warned = True
        return ready

    def session(self, step: int, total_steps: int) -> dict[str, float]:
        """Choose pairs, label them, and fit the reward to all labels.

        Args:
            step: steps the agent has made.
            total_steps: steps it will make, for the schedules "decaying" and "increasing".

        Returns:
            A row for logs: ``step``; ``labels`` (pairs so far); ``skipped`` (new pairs without a label);
            ``label_accuracy`` (share of new labels that agree with the environment's own returns); ``judged_accuracy``
            (the same with means of a judge's values, if there are any); ``ensemble_agreement`` (share that the reward
            predicted before it learned them); ``sent_up`` (pairs that a cascade has sent on so far); and, if there was
            anything to fit, ``fit_accuracy`` and ``fit_loss``.

        Raises:
            ValueError: before `start`, with the budget spent, or without two different segments.
        """
        queries, ensemble = self.queries, self.ensemble
        if ensemble is None:
            raise ValueError("expected start(state_size, action_size) before the first session")
        count = min(queries.size(step, total_steps), queries.budget - self.asked)
        if count < 1:
            raise ValueError(f"the budget of {queries.budget} pairs is spent; hold a session only if due(step)")
        first_time = not ensemble.fitted
        sampler: Sampler = "uniform" if first_time else queries.sampler
        first, second = choose_pairs(
            self.segments, ensemble, count, self.rng,
            sampler=sampler, newest=queries.newest, candidates=queries.candidates, labelled=self.preferences,
        )  # fmt: skip
        labels = as_labels(self.labeler(first, second), count, self.labeler)
        predicted = ensemble.preferences(first, second).mean(0)
        self.unfitted |= bool(self.preferences.add(first, second, labels, soft=True))
        self.asked += count
        row: dict[str, float] = {
            "step": step,
            "labels": len(self.preferences),
            "skipped": int(np.isnan(labels).sum()),
            "label_accuracy": agreement(labels, first.returns - second.returns)[0],
            "ensemble_agreement": agreement(predicted, labels - 0.5)[0],
        }
        judged = first.mean_values - second.mean_values
        if np.isfinite(judged).any():
            row["judged_accuracy"] = agreement(labels, judged)[0]
        if (gate := gate_of(self.labeler)) is not None:
            row["sent_up"] = gate.sent
        unlabelled = None
        if self.semi_supervised and not first_time:
            unlabelled = choose_pairs(
                self.segments, ensemble, 10 * count, self.rng, sampler="uniform", newest=queries.newest, candidates=1
            )
        if report := self._fit(ensemble, unlabelled):
            row |= {"fit_accuracy": float(np.mean(report.accuracy)), "fit_loss": report.loss}
        self.history.append(row)
        self.next_session = step + queries.every
        return row

    def reward(self, states: Tensor, actions: Tensor, *, left: float = 0.0) -> Tensor:
        """The learned reward, float32 ``[B]``; 0 before anything was learned.

        Args:
            states: ``[B, S]``.
            actions: ``[B, A]``.
            left: share of the agent's steps still to come, in [0, 1]; the disagreement bonus is weighted by it.
        """
        if self.ensemble is None or not self.ensemble.fitted:
            return torch.zeros(len(states))
        reward = (self.ensemble.predict(states, actions) - self._mean) * self._factor
        if self.disagreement_bonus > 0.0 and left > 0.0:
            reward = reward + self.disagreement_bonus * left * self.ensemble.bonus(states, actions)
        return reward

    def measure(self, states: Tensor, actions: Tensor) -> None:
        """Take the mean and deviation that `reward_std` replaces over states ``[B, S]`` and actions ``[B, A]``.

        Each session takes them over labelled steps; call this afterwards to take them over a replay buffer.
        """
        if self.reward_std is not None and self.ensemble is not None:
            rewards = self.ensemble.predict(states, actions)
            self._mean, self._factor = float(rewards.mean()), self.reward_std / max(float(rewards.std()), 1e-8)

    def save(self, folder: str | Path) -> None:
        """Write ``learner.json`` and ``learner.safetensors``, or raise CheckpointError; without running episodes."""
        document, tensors = self.pack()
        self.check(document, tensors, f"{folder} was not saved")
        write_pair(folder, document, tensors, stem="learner")

    def restore(self, folder: str | Path) -> None:
        """Read what `save` wrote; then call `start` with the agent's step.

        Raises:
            CheckpointError: if it is missing, damaged, or was saved with other settings; nothing is changed then.
        """
        self.unpack(*read_pair(folder, stem="learner"), Path(folder) / document_name("learner"))

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The learner as a JSON document and tensors."""
        document: dict[str, Any] = {
            "settings": self._settings(),
            "history": [{name: x if np.isfinite(x) else None for name, x in row.items()} for row in self.history],
            "asked": self.asked,
            "reward": [self._mean, self._factor],
            "unfitted": self.unfitted,
            "next": self.next_session,
            "rng": generator_state(self.rng),
            "labeler_rng": generator_state(_generator(self.labeler)),
        }
        if (gate := gate_of(self.labeler)) is not None:
            document["gate"] = [gate.asked, gate.sent]
        tensors: dict[str, Tensor] = {}
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                document[name], packed = part.pack()
                tensors |= {f"{name}/{key}": tensor for key, tensor in packed.items()}
        return document, tensors

    def unpack(
        self,
        document: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        where: str | Path,
        sizes: tuple[int, int] | None = None,
    ) -> None:
        """The inverse of `pack`; nothing is changed if anything is wrong.

        Args:
            document: from `pack`.
            tensors: the same.
            where: named in errors.
            sizes: numbers in a state and in an action, if they are known.
        """
        saved, parts = self.check(document, tensors, where, sizes)
        self.segments, self.preferences, self.ensemble, correction = parts
        if isinstance(self.labeler, CascadeLabeler) and correction is not None:
            self.labeler.correction = correction
        rows = [row.model_dump(exclude_unset=True) for row in saved.history]
        self.history = [{name: float("nan") if x is None else x for name, x in row.items()} for row in rows]
        self.asked, self.next_session, self.unfitted = saved.asked, saved.next, saved.unfitted
        self._mean, self._factor = saved.reward
        if (gate := gate_of(self.labeler)) is not None and saved.gate is not None:
            gate.asked, gate.sent = saved.gate
        for generator, state in ((self.rng, saved.rng), (_generator(self.labeler), saved.labeler_rng)):
            generator.bit_generator.state = check_generator(state, generator, where)

    def check(
        self,
        document: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        where: str | Path,
        sizes: tuple[int, int] | None = None,
    ) -> tuple[SavedLearner, Parts]:
        """What was packed, if this learner can go on with it, or CheckpointError; arguments as `unpack`."""
        saved = SavedLearner.parse(document, where)
        check_settings(self._settings(), saved.settings, where)
        for generator, state in ((self.rng, saved.rng), (_generator(self.labeler), saved.labeler_rng)):
            check_generator(state, generator, where)
        if sizes is None and self.ensemble is not None:
            sizes = self.ensemble.settings["state_dim"], self.ensemble.settings["action_dim"]
        parts = unpack_parts(saved, tensors, where, sizes)
        names = ("length", "episodes", "keep_tokens", "frame_size")
        own, found = ({name: getattr(store, name) for name in names} for store in (self.segments, parts[0]))
        check_settings(own, found, where)
        if saved.asked > self.queries.budget:
            raise CheckpointError(f"{where}: asked: expected at most {self.queries.budget} pairs, got {saved.asked}")
        if saved.reward[1] <= 0:
            raise CheckpointError(f"{where}: reward.1: expected a factor above 0, got {saved.reward[1]}")
        return saved, parts

    def _settings(self) -> dict[str, Any]:
        """The settings that must be the same in `save` and `restore`."""
        names = ("fit_epochs", "standardize", "reward_std", "disagreement_bonus", "semi_supervised", "seed")
        store = {"keep_tokens": self.segments.keep_tokens, "keep_frames": self.segments.frame_size}
        same = {name: getattr(self, name) for name in names}
        return {**asdict(self.queries), "hidden": list(self.hidden), **same, **store}

    def _fit(self, ensemble: RewardEnsemble, unlabelled: tuple[Segments, Segments] | None) -> FitReport | None:
        """Fit all labels, unless they have been fitted; an interrupt leaves them for the next call."""
        if not self.unfitted:
            return None
        title = f"session {len(self.history) + 1}, {len(self.preferences)} labels"
        with tqdm(total=self.fit_epochs, desc=title, unit="epoch", disable=not self.progress_bar) as bar:

            def show(epoch: int, accuracy: float) -> None:
                bar.set_postfix_str(f"accuracy {accuracy:.2f}", refresh=False)
                bar.update()

            report = ensemble.fit(self.preferences, self.fit_epochs, unlabelled=unlabelled, progress=show)
        self.unfitted = False
        if self.reward_std is not None:
            steps = torch.from_numpy(self.preferences.inputs[self.preferences.mask])
            sizes = [ensemble.settings["state_dim"], ensemble.settings["action_dim"]]
            self.measure(*steps[:: len(steps) // MEASURED + 1].split(sizes, dim=1))
        return report


def _generator(labeler: Any) -> np.random.Generator:
    """The generator of a labeler's mistakes; for a labeler without one, an unused generator."""
    return getattr(labeler, "rng", None) or np.random.default_rng(0)
