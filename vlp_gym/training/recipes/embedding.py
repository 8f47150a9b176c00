"""How a model of one embedding a frame and one a sentence learns: six objectives on the very same samples.

A sample is a demonstration and four of its frames, i < j < j + 1 <= k, which is what the most demanding of the
objectives asks for; each takes those that its equation names. Every draw is made before the objective is looked at.
Negatives are samples of other tasks: a frame of the same task, let alone of the same video, shows what the sentence
says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp_gym.data.trajectory import Trajectory, group_views, sentences_by_task
from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.embedding import EmbeddingModel
from vlp_gym.models.protocol import PixelModel
from vlp_gym.models.siglip2 import BASE, SigLIP2Model
from vlp_gym.objectives.liv import liv_loss
from vlp_gym.objectives.r3m import r3m_loss
from vlp_gym.objectives.tcn_text import tcn_text_loss
from vlp_gym.objectives.triplet import triplet_loss
from vlp_gym.objectives.vip import vip_loss
from vlp_gym.objectives.vip_text import vip_text_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.options import TrainOptions, check_at_least
from vlp_gym.training.recipe import Recipe, TrainConfig

SAMPLES = 50_000  # different ones, evenly over the demonstrations
BATCH = 32
NEGATIVES = 3
Views = Literal["timestep", "sample"]
Objective = Literal["triplet", "tcn-text", "r3m", "vip-text", "vip-text+vip", "liv"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
"""The configurations that "Revisiting the learning objectives of vision-language reward models" compares."""


def _vip_both(i: Tensor, j: Tensor, after: Tensor, k: Tensor, text: Tensor) -> Tensor:
    return vip_text_loss(i, j, after, text) + vip_loss(i, j, after, k)


# objective -> the frames that it takes (of i, j, j + 1, k), and the loss of their embeddings, the text's and the batch
_LOSSES: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "triplet": ((0, 1), lambda i, j, text, _: triplet_loss(i, j, text)),
    "tcn-text": ((0, 1), lambda i, j, text, batch: tcn_text_loss(i, j, text, batch.others)),
    "r3m": ((0, 1, 3), lambda i, j, k, text, batch: r3m_loss(i, j, k, text, batch.others)),
    "vip-text": ((0, 1, 2), lambda i, j, after, text, _: vip_text_loss(i, j, after, text)),
    "vip-text+vip": ((0, 1, 2, 3), lambda i, j, after, k, text, _: _vip_both(i, j, after, k, text)),
    "liv": ((0, 1, 2, 3), lambda i, j, after, k, text, batch: liv_loss(i, j, after, k, text, batch.foreign)),
}


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(TrainOptions):
    """The cosine of frame and sentence over the compact model's encoders, by one of six objectives, from scratch.

    Attributes:
        data: folders that `vlp-gym collect` filled, one a camera.
        batch_size: samples in a batch, at least 4.
        objective: the training objective.
    """

    steps: int = 2_000
    batch_size: int = BATCH
    objective: Objective = "triplet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(NEGATIVES + 1, batch_size=self.batch_size)

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[nn.Module, EmbeddingRecipe]:
        """See `TrainOptions.build`."""
        recipe = EmbeddingRecipe(trajectories, self.objective, batch_size=self.batch_size, seed=self.seed)
        return self.model(), recipe

    def model(self) -> nn.Module:
        """A fresh model."""
        return EmbeddingModel()


@dataclass(frozen=True, kw_only=True)
class SigLIP2Options(EmbeddingOptions):
    """The cosine of frame and sentence over SigLIP2 with low-rank adapters, by one of six objectives.

    Attributes:
        learning_rate: highest learning rate, after the warm-up; by default 1e-4, and 1e-5 with --objective liv, whose
            loss makes SigLIP2 unstable beyond that (learning objectives, appendix A.1).
        backbone: a SigLIP or SigLIP2 of one resolution, as a hub id or a folder.
    """

    steps: int = 7_810
    learning_rate: float | None = None  # type: ignore[assignment]
    backbone: str = BASE

    def config(self) -> TrainConfig:
        """See `TrainOptions.config`."""
        if self.learning_rate is not None:
            return super().config()
        return replace(super().config(), learning_rate=1e-5 if self.objective == "liv" else 1e-4)

    def model(self) -> nn.Module:
        """A fresh model."""
        return SigLIP2Model(base=self.backbone)

    def packages(self) -> dict[str, str]:
        """See `TrainOptions.packages`."""
        return super().packages() | {"transformers": "vlm", "peft": "vlm"}


@dataclass(frozen=True)
class EmbeddingBatch:
    """B samples.

    Attributes:
        frames: uint8 ``[B, M, H, W, 3]``, of each sample the M frames that the objective takes, in the order of time.
        others: int64 ``[B, 3]``, for each sample three others that give its negatives; see `negatives`.
        foreign: bool ``[B, B]``, for each sample all that may; likewise.
        instructions: B sentences.
    """

    frames: Tensor
    others: Tensor
    foreign: Tensor
    instructions: list[str]

    def to(self, device: torch.device) -> EmbeddingBatch:
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("frames", "others", "foreign")}
        return replace(self, **moved)


class EmbeddingRecipe(Recipe):
    """Batches of samples and the loss of one objective; a `vlp_gym.training.loop.Recipe`.

    Args:
        trajectories: experts that get their task done; others are left out. Those of one rollout seen by several
            cameras have the same task, tier and seed.
        objective: one of `OBJECTIVES`.
        batch_size: B.
        samples: size of the pool; each has a demonstration and its time steps for good, and every visit draws the
            views, the sentence and the negatives anew.
        views: "timestep" draws a camera for each of a sample's frames, as the paper words it; "sample" one for all.
        seed: decides everything but the augmentation.

    Raises:
        ValueError: for an unknown objective, or if there is no demonstration of at least 3 frames, or frames of
            several sizes.
        DatasetError: if a demonstration carries no sentences; and see `group_views`.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        objective: str,
        *,
        batch_size: int = BATCH,
        samples: int = SAMPLES,
        views: Views = "timestep",
        seed: int = 0,
    ) -> None:
        if objective not in _LOSSES:
            raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
        done = [t for t in trajectories if t.tier == "expert" and t.success.any() and len(t.frames) >= 3]
        if not done:
            raise ValueError(f"expected experts that get their task done, found none in {len(trajectories)} rollouts")
        if len(sizes := sorted({t.frames.shape[1:3] for t in done})) > 1:
            raise ValueError(f"expected frames of one size, got {' and '.join(f'{h} x {w}' for h, w in sizes)}")
        if not NEGATIVES < batch_size <= samples:
            raise ValueError(f"batch_size: expected {NEGATIVES + 1} to {samples} (the samples), got {batch_size}")
        self.rollouts, self.sentences = group_views(done), sentences_by_task(done)
        self.cameras = list(self.rollouts[0])
        self.tasks = np.array([rollout[self.cameras[0]].task for rollout in self.rollouts])
        self.chosen, self.objective = _LOSSES[objective]
        self.batch_size, self.samples, self.views, self.seed = batch_size, samples, views, seed
        self.settings: dict[str, Any] = {
            "objective": objective,
            "tasks": sorted({t.task for t in done}),
            "cameras": self.cameras,
            "demonstrations": len(self.rollouts),
            "batch_size": batch_size,
            "samples": samples,
            "views": views,
            "recipe_seed": seed,
        }

    def batch(self, number: int) -> EmbeddingBatch:
        """Batch `number`: the pool in another order each time through it."""
        epoch, place = divmod(number, self.samples // self.batch_size)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.samples)
        rng = np.random.default_rng([self.seed, 2, number])
        frames, sentences = [], []
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        for sample in chosen:
            rollout, steps = self.sample(int(sample))
            cameras = rng.integers(len(self.cameras), size=4)
            if self.views == "sample":
                cameras[:] = cameras[0]
            shown = [rollout[self.cameras[camera]].frames[step] for camera, step in zip(cameras, steps, strict=True)]
            frames.append(np.stack([shown[which] for which in self.chosen]))
            sentences.append(str(rng.choice(self.sentences[rollout[self.cameras[0]].task])))
        numbers = chosen % len(self.rollouts)
        others, foreign = (torch.from_numpy(rows) for rows in negatives(self.tasks[numbers], numbers, rng))
        return EmbeddingBatch(torch.from_numpy(np.stack(frames)), others, foreign, sentences)

    def sample(self, number: int) -> tuple[dict[str, Trajectory], tuple[int, int, int, int]]:
        """Sample `number` of the pool: a demonstration by camera, and its time steps i, j, j + 1 and k."""
        rollout = self.rollouts[number % len(self.rollouts)]
        rng = np.random.default_rng([self.seed, 0, number])
        i, j, k = np.sort(rng.choice(len(rollout[self.cameras[0]].frames), 3, replace=False)).tolist()
        return rollout, (i, j, j + 1, k)

    def loss(self, model: nn.Module, batch: EmbeddingBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The objective, and how often the sentence is nearer to frame j than to frame i.

        A model with ``encode_pixels``, which trains from scratch, sees augmented frames.

        Args:
            model: an `EmbeddingModel` or `SigLIP2Model`.
            batch: the samples.
            generator: of the augmentation.
        """
        size, count = batch.frames.shape[:2]
        encode: Any = model
        if isinstance(model, PixelModel):
            frames = resize_frames(batch.frames.flatten(0, 1), encode.frame_size).unflatten(0, (size, count))
            embedded = encode.encode_pixels(augment_clips(frames, generator))
        else:
            embedded = encode.encode_frames(batch.frames.flatten(0, 1))
        by_time = embedded[:, 0].float().unflatten(0, (size, count)).unbind(1)
        text = encode.encode_text(batch.instructions)[:, 0].float()
        nearer = ((by_time[1] - by_time[0]) * text).sum(-1).detach() > 0
        return {"loss": self.objective(*by_time, text, batch), "ordered": nearer.float().mean()}


def negatives(
    tasks: NDArray[np.str_], rollouts: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which rows of a batch are set against which: those of another task.

    A row that finds too few of them makes do with other rollouts of its task, and then with its own.

    Args:
        tasks: of B rows, ``[B]``, B more than `NEGATIVES`.
        rollouts: their numbers, int64 ``[B]``; a rollout has one task.
        rng: draws.

    Returns:
        For each row `NEGATIVES` different others, int64 ``[B, NEGATIVES]``, and all those of the farthest kind that
        the batch has for it, bool ``[B, B]``. Never the row itself.
    """
    near = (tasks[:, None] == tasks).astype(np.int8) + (rollouts[:, None] == rollouts) + np.eye(len(tasks), dtype=bool)
    drawn = np.argsort(near + rng.random(near.shape), axis=1)[:, :NEGATIVES]
    return drawn, near == near.min(1, keepdims=True)
