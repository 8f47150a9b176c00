"""TorchRL with a reward that is learned from preferences (PEBBLE), for any off-policy loss.

```python
preferences = VLPPreferenceTransform(PreferenceLearner(ScriptedLabeler()), total_steps=100_000)
env = TransformedEnv(GymWrapper(env), preferences)
buffer.append_transform(preferences.clone())
```
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.integrations.torchrl.base import PLACE, REWARD, base_of
from vlp_gym.preferences.exploration import StateEntropy
from vlp_gym.preferences.learner import PreferenceLearner
from vlp_gym.rewards.info import ticket_in
from vlp_gym.wrappers.late_source import LateSource

SEEN = 2048
"""States of newest steps, among which exploration looks for neighbours."""


class _Run:
    """A learner and the environment that it listens to, shared by all clones of a transform."""

    def __init__(self, learner: PreferenceLearner, total_steps: int) -> None:
        self.learner, self.total_steps = learner, total_steps
        self.steps = 0
        self.source: LateSource | None = None
        """None where there is no reward wrapper, or before the first reset."""
        self.engines: list[QueryEngine] = []
        """Those whose answers the learner's segments keep."""
        self.started = False
        self._ours: list[dict[str, Any] | None] | None = None
        self._seen: deque[Tensor] = deque(maxlen=SEEN)
        self._exploration = StateEntropy(lambda count, rng: torch.stack(list(self._seen)), seed=learner.seed)

    def listen(self, envs: Any) -> None:
        """Connect the engine of a reward wrapper, if there is one, to the learner's segments."""
        with contextlib.suppress(ValueError):  # no reward wrapper: then no labeler can ask for what it has seen
            self.source = LateSource(envs)
        if self.source is not None and self.source.late:
            self.engines = self.source.engines()
            self.learner.check_engines(self.engines)
            for engine in self.engines:
                engine.on_answer = lambda *answer: self.learner.segments.on_answer(*answer)

    def read(self, infos: dict[str, Any], tensordict: TensorDictBase) -> None:
        """Keep our numbers of a step: an info reader of TorchRL, which changes the infos afterwards."""
        if self.source is not None and REWARD in tensordict:  # no reset
            self._ours = self.source.transitions(infos)

    def add(self, states: Tensor, actions: Tensor, rewards: Tensor, dones: Tensor) -> None:
        """Give the learner a step of every environment, ``[N, S]``, ``[N, A]``, ``[N]`` and ``[N]``."""
        ours, self._ours = self._ours or [None] * len(states), None
        for env, (state, numbers) in enumerate(zip(states, ours, strict=True)):
            own = float(rewards[env] if numbers is None else numbers["env_reward"])
            self.learner.add_step(
                env, state.numpy(), actions[env].numpy(), own, bool(dones[env]), ticket_in(numbers)
            )  # fmt: skip
            self._seen.append(state)
        self.steps += len(states)
        if self.source is not None:
            for _ in self.source.poll(raises=False):  # only the scores are wanted
                pass

    def session(self) -> dict[str, float] | None:
        """Hold a session, if one is due."""
        if not self.learner.due(self.steps):
            return None
        for engine in self.engines:
            engine.wait()
        return self.learner.session(self.steps, self.total_steps)

    def reward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Of what is learned so far, ``[B]``; before that, for exploration."""
        if self.learner.fitted:
            left = 1.0 - min(self.steps / self.total_steps, 1.0)
            return self.learner.reward(states, actions, left=left)
        return self._exploration(states, actions)


class VLPPreferenceTransform(Transform):
    """Runs a `PreferenceLearner` while an agent collects, and pays what is learned (PEBBLE, Lee et al., 2021).

    In a `TransformedEnv` around a `GymWrapper` it gives the learner each step, and holds a session when one is due. A
    ``clone()`` of it on the replay buffer pays what is sampled by what is learned so far, old transitions, too; before
    the first session by `StateEntropy` among the newest 2,048 steps. The first session changes the reward altogether: a
    new critic then helps (`on_session`).

    The environment lives in this process: one, or a vector environment of Gymnasium. For labels by a reward model it
    has a reward wrapper with ``mode="async"``, see `PreferenceLearner`.

    Args:
        learner: newly made, or restored.
        total_steps: steps that the agent will make, in all environments together.
        random_steps: the first of them that are random; then ``queries.explore`` steps of exploration follow.
        state: name of the observation. Shapes are flattened.
        action: name of the action.
        on_session: called with the row of each session, see `PreferenceLearner.session`.

    Raises:
        TypeError: at the first reset, if the environment is no `GymWrapper`.
        ValueError: at the first reset, if the labeler's model is not the wrapper's; if total_steps is below 1.
        KeyError: a tensordict has no such observation or action.
    """

    def __init__(
        self,
        learner: PreferenceLearner,
        *,
        total_steps: int,
        random_steps: int = 0,
        state: str | tuple[str, ...] = "observation",
        action: str | tuple[str, ...] = "action",
        on_session: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self._run = _Run(learner, total_steps)
        self.random_steps, self.state, self.action, self.on_session = random_steps, state, action, on_session

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if not self._run.started:
            self._start(tensordict_reset)
        chosen = tensordict.get("_reset", None)
        which = [True] * tensordict_reset.batch_size.numel() if chosen is None else chosen.flatten().tolist()
        for env, reset in enumerate(which):
            if reset:
                self._run.learner.segments.forget_running(env)  # of an episode that was broken off
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        states, actions = self._rows(tensordict)
        self._run.add(states, actions, next_tensordict[REWARD].flatten(), next_tensordict["done"].flatten())
        row = self._run.session()
        if row is not None and self.on_session is not None:
            self.on_session(row)
        return next_tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Pay these transitions what is learned so far."""
        rewards = self._run.reward(*self._rows(tensordict))
        before = tensordict["next", REWARD]
        return tensordict.set(("next", REWARD), rewards.reshape(before.shape).to(before))

    def _check_batched_worker_compat(self) -> None:
        raise RuntimeError(f"VLPPreferenceTransform {PLACE}")

    def _rows(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """States ``[N, S]`` and actions ``[N, A]``, float32 on the CPU."""
        count = tensordict.batch_size.numel()
        states, actions = (
            tensordict[name].detach().reshape(count, -1).to("cpu", torch.float32) for name in (self.state, self.action)
        )
        return states, actions

    def _start(self, tensordict_reset: TensorDictBase) -> None:
        """Begin with the first reset: only then are environment and sizes known."""
        env, _ = base_of(self.container)
        run, batch = self._run, len(tensordict_reset.batch_size)
        shapes = tensordict_reset[self.state].shape[batch:], self.container.full_action_spec[self.action].shape[batch:]
        state_size, action_size = (int(np.prod(shape)) for shape in shapes)
        run.learner.start(state_size, action_size, step=run.steps, random_steps=self.random_steps)
        run.listen(env._env)
        env.info_dict_reader.insert(0, run.read)
        run.started = True
