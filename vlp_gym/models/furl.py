"""FuRL: two small heads on a frozen vision-language model, trained while the agent learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Width
from vlp_gym.models.cosine import CosineModel
from vlp_gym.models.protocol import RewardModel, Scores, frame_scores
from vlp_gym.objectives.furl import goal_ranking_loss, success_ranking_loss


class FuRLModel(CosineModel, nn.Module, CheckpointMixin):
    """FuRL (Fu et al. 2024): the cosine of the frame and sentence embeddings after a learned head on each.

    The paper's reward is ``(success - 1) + 0.05 * cosine`` with the environment's sparse success. Give the environment
    that reward and let the wrapper add the two:

    ```python
    class Sparse(gym.Wrapper):
        def step(self, action):
            observation, _, terminated, truncated, info = self.env.step(action)
            return observation, float(info["success"]) - 1.0, terminated, truncated, info

    env = VLPRewardWrapper(Sparse(env), "press the button", model, scale=0.05, env_reward_weight=1.0, mode="async")
    agent = SAC("MlpPolicy", env, replay_buffer_class=VLPReplayBuffer)
    agent.learn(1_000_000, [VLPRewardCallback(), FuRLCallback()])
    ```

    New heads are random, so their values are meaningless until `FuRLTrainer` (with Stable-Baselines3:
    `FuRLCallback`) has trained them. A checkpoint stores the heads and the name of the frozen model.

    Args:
        base: a reward model with one token per frame and one per sentence, such as LIV's folder or
            "clip:ViT-B-32/openai"; or a live model (which cannot be saved). It is not trained.
        widths: widths of the layers of each head.

    Raises:
        ValueError: the base gives more than one token.
    """

    model_type = "furl"

    def __init__(
        self,
        base: str | RewardModel,
        *,
        widths: Annotated[Sequence[Width], Field(min_length=1, max_length=64)] = (256, 64),
    ) -> None:
        super().__init__()
        if isinstance(base, str):
            from vlp_gym.models.registry import load_reward_model

            base = load_reward_model(base)
        self.base: Any = base
        self.frame_size = base.frame_size
        if isinstance(base, nn.Module):
            base.requires_grad_(False).eval()
        frame = self.encode_frames(torch.zeros(1, *base.frame_size, 3, dtype=torch.uint8))  # for the widths
        sentence = self.encode_text(["press the button"])
        self.image_head = _mlp(frame.shape[-1], widths).to(frame.device)
        self.text_head = _mlp(sentence.shape[-1], widths).to(frame.device)

    @classmethod
    def from_spec(cls, spec: str) -> FuRLModel:
        """Put new heads on the model of this name."""
        with torch.random.fork_rng(devices=[]):
            return cls(spec)

    def train(self, mode: bool = True) -> FuRLModel:
        """Switch the heads to training mode, not the frozen base."""
        super().train(mode)
        if isinstance(self.base, nn.Module):
            self.base.eval()
        return self

    @torch.no_grad()
    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """The base's embeddings of B sentences, float ``[B, 1, D']``; `score` applies the head."""
        return _single(self.base.encode_text(instructions), "sentence")

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """The base's embeddings of uint8 frames ``[N, H, W, 3]``, float ``[N, 1, D]``; `score` applies the head."""
        return _single(self.base.encode_frames(frames), "frame")

    def values(self, frames: Tensor, text: Tensor) -> Tensor:
        """Cosines ``[...]`` of frame embeddings ``[..., D]`` and sentence embeddings ``[..., D']`` after the heads."""
        dtype = next(self.image_head.parameters()).dtype
        return F.cosine_similarity(self.image_head(frames.to(dtype)), self.text_head(text.to(dtype)), dim=-1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See `CosineModel.score`; here frames ``[B, T, 1, D]`` and text ``[B, 1, D']`` come before the heads."""
        return frame_scores(self.values(frames[:, :, 0], text).clamp(-1, 1), mask)  # a cosine can round to over 1

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The heads; the base is loaded by its name."""
        return {key: value.detach() for key, value in self.state_dict().items() if not key.startswith("base.")}


class FuRLTrainer:
    """Fine-tune the heads of a `FuRLModel` on the agent's frames, for one sentence.

    Frames of successful episodes, up to the success, are positive; frames of failed episodes are negative. Until the
    first success a goal image ranks the frames; without one, training starts at the first success.

    Args:
        model: its heads are trained.
        text: the base's embedding of the sentence, float ``[D']``.
        goal: the base's embedding of an image of success, float ``[D]``, or None.
        gap: frames between a positive frame and the earlier one it must exceed.
        margin: see `vlp_gym.objectives.furl`.
        distance_margin: see there.
        batch_size: frames of each kind per update.
        learning_rate: learning rate of Adam.
        capacity: number of the newest frames of each kind that are kept.
        seed: seeds all random draws.
    """

    def __init__(
        self,
        model: FuRLModel,
        text: Tensor,
        *,
        goal: Tensor | None = None,
        gap: int = 10,
        margin: float = 0.1,
        distance_margin: float = 0.25,
        batch_size: int = 256,
        learning_rate: float = 1e-4,
        capacity: int = 20_000,
        seed: int = 0,
    ) -> None:
        if gap < 1:
            raise ValueError(f"gap: expected a number of frames, at least 1, got {gap}")
        self.model = model
        self.text = text.clone()  # the engine's is an inference tensor, which autograd refuses
        self.goal = None if goal is None else goal.clone()
        self.gap, self.margin, self.distance_margin, self.batch_size = gap, margin, distance_margin, batch_size
        heads = [*model.image_head.parameters(), *model.text_head.parameters()]
        self.optimizer = torch.optim.Adam(heads, learning_rate)
        self.seen, self.negative, self.positive = (_Pool(capacity) for _ in range(3))
        self.generator = torch.Generator().manual_seed(seed)

    def add_episode(self, embeddings: Tensor, success: Tensor) -> None:
        """Add a finished episode.

        Args:
            embeddings: the base's embeddings of its F frames in order, float ``[F, D]``.
            success: bool ``[F]``, whether the task is done at each frame.
        """
        if self.goal is not None:
            self.seen.add(embeddings)
        if not success.any():
            self.negative.add(embeddings)
            return
        # Up to the first success and for as long as it lasts.
        first = int(success.int().argmax())
        lost = (~success[first:]).nonzero()
        way = embeddings[: first + int(lost[0]) if len(lost) else None]
        if len(way) > self.gap:
            self.positive.add(torch.stack([way[self.gap :], way[: -self.gap]], 1))

    def update(self) -> float | None:
        """Take one step of Adam; returns the loss, or None while there is nothing to learn from."""
        if len(self.positive):
            positive, lagged = self._values(self.positive).unbind(1)
            negative = self._values(self.negative) if len(self.negative) else None
            loss = success_ranking_loss(positive, negative, lagged, margin=self.margin)
        elif self.goal is not None and len(self.seen):
            frames = self._draw(self.seen)
            distances = (frames - self.goal.to(frames)).norm(dim=-1)
            values = self.model.values(frames, self.text)
            loss = goal_ranking_loss(values, distances, margin=self.margin, distance_margin=self.distance_margin)
        else:
            return None
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def _values(self, pool: _Pool) -> Tensor:
        return self.model.values(self._draw(pool), self.text)

    def _draw(self, pool: _Pool) -> Tensor:
        return pool.draw(self.batch_size, self.generator).to(self.text.device)


class _Pool:
    """The newest rows added, on the CPU."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.total = capacity, 0
        self.rows = torch.empty(0)

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def add(self, rows: Tensor) -> None:
        rows = rows[-self.capacity :].float().cpu()
        if self.total == 0:
            self.rows = rows.new_empty(self.capacity, *rows.shape[1:])  # untouched memory is not allocated
        self.rows[(self.total + torch.arange(len(rows))) % self.capacity] = rows
        self.total += len(rows)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.rows[torch.randint(len(self), (count,), generator=generator)]


def _mlp(width: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out in widths:
        layers += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers[:-1])


def _single(tokens: Tensor, what: str) -> Tensor:
    if tokens.shape[1] != 1:
        raise ValueError(f"expected a base with one token a {what}, got {tokens.shape[1]}; take LIV or a clip: model")
    return tokens
