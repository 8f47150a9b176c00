"""Training of models with one embedding per frame and per sentence: six objectives on identical samples.

A sample is a demonstration with four of its frames, i < j < j + 1 <= k; each objective uses those in its equation. The
random draws do not depend on the objective. Negatives come from other tasks, because frames of the same task match the
sentence.
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
from vlp_gym.training.recipe import Batch, Recipe, TrainConfig

SAMPLES = 50_000  # distinct samples, spread evenly over the demonstrations
BATCH = 32
NEGATIVES = 3
Views = Literal["timestep", "sample"]
Objective = Literal["triplet", "tcn-text", "r3m", "vip-text", "vip-text+vip", "liv"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
"""The configurations compared in "Revisiting the learning objectives of vision-language reward models"."""

# objective -> its frames (indices into i, j, j + 1, k), and its loss of their embeddings, the text's and the batch
_LOSSES: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "triplet": ((0, 1), lambda i, j, text, _: triplet_loss(i, j, text)),
    "tcn-text": ((0, 1), lambda i, j, text, batch: tcn_text_loss(i, j, text, batch.others)),
    "r3m": ((0, 1, 3), lambda i, j, k, text, batch: r3m_loss(i, j, k, text, batch.others)),
    "vip-text": ((0, 1, 2), lambda i, j, j1, text, _: vip_text_loss(i, j, j1, text)),
    "vip-text+vip": ((0, 1, 2, 3), lambda i, j, j1, k, text, _: vip_text_loss(i, j, j1, text) + vip_loss(i, j, j1, k)),
    "liv": ((0, 1, 2, 3), lambda i, j, j1, k, text, batch: liv_loss(i, j, j1, k, text, batch.foreign)),
}


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(TrainOptions):
    """The cosine of frame and sentence over the small encoders, by one of six objectives, from scratch.

    Attributes:
        data: folders from `vlp-gym collect`, one per camera.
        batch_size: samples per batch, at least 4.
        objective: the training objective.
    """

    steps: int = 2_000
    batch_size: int = BATCH
    objective: Objective = "triplet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(NEGATIVES + 1, batch_size=self.batch_size)

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[nn.Module, EmbeddingRecipe]:
        model = self.model()
        return model, self.recipe_of(model, trajectories)

    def recipe_of(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> EmbeddingRecipe:
        return EmbeddingRecipe(trajectories, self.objective, batch_size=self.batch_size, seed=self.seed)

    def model(self) -> nn.Module:
        """A new model."""
        return EmbeddingModel()


@dataclass(frozen=True, kw_only=True)
class SigLIP2Options(EmbeddingOptions):
    """The cosine of frame and sentence over SigLIP2 with low-rank adapters, by one of six objectives.

    Attributes:
        learning_rate: peak learning rate, after the warm-up; default: 1e-4, or 1e-5 with --objective liv, whose loss
            makes SigLIP2 unstable at higher rates (learning objectives, appendix A.1).
        backbone: a SigLIP or SigLIP2 of fixed resolution, as a hub id or a folder.
    """

    steps: int = 7_810
    learning_rate: float | None = None  # type: ignore[assignment]
    backbone: str = BASE

    def config(self) -> TrainConfig:
        rate = 1e-5 if self.objective == "liv" else 1e-4
        return replace(super().config(), learning_rate=rate if self.learning_rate is None else self.learning_rate)

    def model(self) -> nn.Module:
        return SigLIP2Model(base=self.backbone)

    def packages(self) -> dict[str, str]:
        return super().packages() | {"transformers": "vlm", "peft": "vlm"}


@dataclass(frozen=True)
class EmbeddingBatch(Batch):
    """B samples.

    Attributes:
        frames: uint8 ``[B, M, H, W, 3]``, each sample's M frames for the objective, in order of time.
        others: int64 ``[B, 3]``, for each sample the indices of three negatives; see `negatives`.
        foreign: bool ``[B, B]``, for each sample all possible negatives; see `negatives`.
        instructions: B sentences.
    """

    frames: Tensor
    others: Tensor
    foreign: Tensor
    instructions: list[str]


class EmbeddingRecipe(Recipe):
    """Batches of samples and the loss of one objective.

    Args:
        trajectories: demonstrations, that is successful experts; others are ignored. Trajectories of one rollout from
            several cameras share task, tier and seed.
        objective: one of `OBJECTIVES`.
        batch_size: B, at least 4.
        samples: size of the pool. A sample's demonstration and time steps are fixed; each visit draws new views,
            sentence and negatives.
        views: "timestep" draws a camera for each frame of a sample, as in the paper; "sample" one for all its frames.
        seed: seeds all random draws except the augmentation.

    Raises:
        ValueError: for an unknown objective, without a demonstration of at least 3 frames, or for several frame sizes.
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
        """Batch `number`; each pass through the pool has a new order."""
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
        """The objective, and the share of samples whose sentence is closer to frame j than to frame i.

        An `EmbeddingModel`, which trains from scratch, gets augmented frames; a `SigLIP2Model` does not.
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
    """The negatives of each row of a batch: rows of other tasks.

    A row with too few of them also takes other rollouts of its task, then other samples of its rollout.

    Args:
        tasks: task of each row, ``[B]``, B more than `NEGATIVES`.
        rollouts: rollout number of each row, int64 ``[B]``; a rollout has one task.
        rng: source of all random draws.

    Returns:
        `NEGATIVES` distinct other rows for each row, int64 ``[B, NEGATIVES]``; and for each row all rows of the most
        different kind in the batch, bool ``[B, B]``. Never the row itself.
    """
    near = (tasks[:, None] == tasks).astype(np.int8) + (rollouts[:, None] == rollouts) + np.eye(len(tasks), dtype=bool)
    drawn = np.argsort(near + rng.random(near.shape), axis=1)[:, :NEGATIVES]
    return drawn, near == near.min(1, keepdims=True)
