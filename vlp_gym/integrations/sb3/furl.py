"""FuRL with Stable-Baselines3: the heads of the reward model learn from the agent's frames.

```python
env = VLPRewardWrapper(Sparse(env), "press the button", model, scale=0.05, env_reward_weight=1.0, mode="async")
agent = SAC("MlpPolicy", env, replay_buffer_class=VLPReplayBuffer)
agent.learn(1_000_000, [VLPRewardCallback(), FuRLCallback()])
```

``Sparse`` is shown in the documentation of `FuRLModel`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.integrations.sb3.source import SegmentSource
from vlp_gym.models.furl import FuRLModel, FuRLTrainer
from vlp_gym.rewards.info import ours_in, ticket_in
from vlp_gym.rewards.ledger import STEPS_OF_ITS_OWN


class FuRLCallback(BaseCallback):
    """Trains the heads of the environments' `FuRLModel`: a `FuRLTrainer` fed with the frame tokens of the engine.

    Whole episodes are added, with the environment's own success, and after the agent's ``learning_starts`` steps the
    heads are updated at every step of the environments. Needs the wrapper in the mode "async".

    Each reward is computed once, by the heads at the time of the step. The paper's program recomputes the rewards of
    each batch from the replay buffer; its relay of two agents is not implemented.

    Logged are ``furl/loss``, ``furl/positive`` and ``furl/negative`` (frames kept).

    Args:
        goal: an image of success, uint8 ``[H, W, 3]``, to rank frames by before the first success; None: the heads
            learn from the first success on.
        success_key: key of the success in ``info``.
        updates: updates of the heads at each step.
        options: passed to the `FuRLTrainer`: gap, margin, distance_margin, batch_size, learning_rate, capacity, seed.

    Raises:
        ValueError: at the start of the training, if the environments do not share one `FuRLModel` and one sentence in
            the mode "async"; at a step, if ``info`` lacks the success.
    """

    def __init__(
        self,
        goal: NDArray[np.uint8] | None = None,
        *,
        success_key: str = "success",
        updates: int = 1,
        verbose: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(verbose)
        self.goal, self.success_key, self.updates, self.options = goal, success_key, updates, options
        self.trainer: FuRLTrainer | None = None
        """Made at the start of the first training, and kept when training goes on."""
        self._source: SegmentSource | None = None
        self._episodes = _Episodes()

    def _on_training_start(self) -> None:
        self._source = SegmentSource(self.training_env)
        self._source.find_engines()
        engines = list(self._source.engines)
        models = {id(engine.model.model): engine.model.model for engine in engines}
        vector = self._source.vector
        sentences = set(self.training_env.get_attr("instruction") if vector is None else vector.instructions)
        (model, *others), (sentence, *rest) = models.values(), sentences
        if others or not isinstance(model, FuRLModel) or rest:
            kinds = sorted({type(each).__name__ for each in models.values()})
            raise ValueError(
                f"expected environments that one FuRLModel pays for one sentence, got {len(models)} of {kinds} and the "
                f"sentences {sorted(sentences)}"
            )
        if self.trainer is None:
            goal = None
            if self.goal is not None:
                picture, guard = torch.from_numpy(self.goal)[None], engines[0].model
                goal = engines[0].exclusively(lambda: guard.encode_frames(picture, where="the goal")[0, 0])
            text = engines[0].encode_text(sentence)[0]
            self.trainer = FuRLTrainer(model, text, goal=goal, **self.options)
        elif self.trainer.model is not model:
            raise ValueError("expected the model that this callback has trained before; make a new callback")
        self._episodes = _Episodes()
        self._source.connect(self._episodes.on_answer)

    def _on_step(self) -> bool:
        assert self.trainer is not None
        assert self._source is not None
        for env, (info, done) in enumerate(zip(self.locals["infos"], self.locals["dones"], strict=True)):
            if self.success_key not in info:
                raise ValueError(f"expected info[{self.success_key!r}] of every step, got {sorted(info)}")
            ticket = ticket_in(ours_in(info))
            assert ticket is not None
            self._episodes.step(ticket._replace(env=env), bool(info[self.success_key]), over=bool(done))
        self._take_in()
        if self.num_timesteps > getattr(self.model, "learning_starts", 0):
            losses = [exclusively(list(self._source.engines), self.trainer.update) for _ in range(self.updates)]
            if losses and losses[-1] is not None:
                self.logger.record_mean("furl/loss", losses[-1])
                self.logger.record("furl/positive", len(self.trainer.positive))
                self.logger.record("furl/negative", len(self.trainer.negative))
        return True

    def _on_training_end(self) -> None:
        if self._source is not None:
            self._source.disconnect()  # waits for the pending answers
            self._take_in()

    def _take_in(self) -> None:
        assert self.trainer is not None
        for embeddings, success in self._episodes.finished():
            self.trainer.add_episode(embeddings, success)


def exclusively(engines: Sequence[QueryEngine], function: Callable[[], Any]) -> Any:
    """Call a function while none of these engines uses its model, which several may share."""
    if not engines:
        return function()
    return engines[0].exclusively(lambda: exclusively(engines[1:], function))


class _Episodes:
    """Joins the steps of the environments with their frame tokens, which come later."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[Ticket, Tensor]] = deque()  # filled by the engine's thread
        self._newest: dict[int, int] = {}  # environment to the episode of its newest token
        self._tokens: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
        self._success: dict[tuple[int, int], list[bool]] = {}
        self._over: list[tuple[int, int]] = []
        self._ticket: dict[int, Ticket] = {}  # of the newest step

    def on_answer(self, answer: Answer, frames: NDArray[np.uint8], tokens: Tensor) -> None:
        """Keep the first camera's token, ``[D]``; called by `QueryEngine` in any thread."""
        self._arrived.append((answer.ticket, tokens[0, 0].to("cpu", copy=True)))

    def step(self, ticket: Ticket, success: bool, *, over: bool) -> None:
        """Add one step of an environment."""
        key = ticket.env, ticket.episode
        newest = self._ticket.get(ticket.env, ticket)
        if newest.episode == ticket.episode and ticket.step > newest.step + 1:
            raise ValueError(f"{STEPS_OF_ITS_OWN} ({newest}; then {ticket})")
        self._ticket[ticket.env] = ticket
        self._success.setdefault(key, []).append(success)
        if over:
            self._over.append(key)

    def finished(self) -> list[tuple[Tensor, Tensor]]:
        """Remove and return the episodes whose last token has come: embeddings ``[F, D]`` and success ``[F]``."""
        while self._arrived:
            (env, episode, step), token = self._arrived.popleft()
            self._newest[env] = episode
            if step > 0:  # the reset frame belongs to no step
                self._tokens.setdefault((env, episode), []).append((step, token))
        whole = []
        for key in list(self._over):
            tokens, success = self._tokens.get(key, []), self._success[key]
            if complete := bool(tokens) and tokens[-1][0] == len(success):
                flags = torch.tensor([success[step - 1] for step, _ in tokens])
                whole.append((torch.stack([token for _, token in tokens]), flags))
            if complete or self._newest.get(key[0], -1) > key[1]:  # or an error cost its end
                self._over.remove(key)
                self._tokens.pop(key, None)
                del self._success[key]
        return whole
