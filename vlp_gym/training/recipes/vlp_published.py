"""VLP's training as published: pairs of whole videos of one task, and videos of other tasks as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlp_gym.data.trajectory import ALL_TIERS, TIERS, Trajectory
from vlp_gym.engine.windows import segment_window
from vlp_gym.models.vlp import VLPModel
from vlp_gym.objectives.preference import vlp_loss
from vlp_gym.training.recipe import Batch, Recipe, TrainConfig, expect_model
from vlp_gym.training.recipes.by_task import RolloutsByTask
from vlp_gym.training.token_files import TokenFiles

BETAS = (0.9, 0.999)  # of LAPP's code, on which the authors build; the paper names none


@dataclass(frozen=True)
class PublishedBatch(Batch):
    """B pairs of videos of one task, with N videos of other tasks beside each; V different videos in all.

    Attributes:
        videos: uint8 ``[V, T, H, W, 3]``; with token files their tokens, float16 ``[V, T, K, D]``.
        mask: bool ``[V, T]``, False where a shorter video is padded in front.
        pairs: int64 ``[B, 2]``, numbers of videos.
        negatives: int64 ``[B, N]``, numbers of videos.
        label: float32 ``[B]``, 1 if the first video has the better tier, 0 if the second has, 0.5 for equal ones.
        instructions: B sentences of the task.
        foreign: B sentences of other tasks.
    """

    videos: Tensor
    mask: Tensor
    pairs: Tensor
    negatives: Tensor
    label: Tensor
    instructions: list[str]
    foreign: list[str]


class PublishedRecipe(Recipe):
    """VLP's section 3.3, table 8 and appendix C: only tiers say which video is better.

    A batch is about one task. A pair is two different rollouts of it, each of a random tier, whole, with its frames
    spread evenly. Rollouts of other tiers than MTVLP's have no known place in the order and are not used. Nothing is
    augmented. Weight decay is on the weights of linear layers alone. A rollout is encoded once a batch, or once for all
    with token files, and its frames attend to each other once, however many sentences it is compared under.

    The loop clips gradients at norm 1, and its cosine ends at a hundredth of the learning rate; the paper says nothing
    of either.

    Args:
        trajectories: rollouts of all training tasks, at least two.
        window: T, the model's window.
        pairs: B.
        negatives: N.
        lambda_ilp: weight of the inter-language term, lambda_1.
        lambda_ivp: weight of each inter-video term, lambda_2.
        data_share: share of the rollouts of each task and tier to train on, in (0, 1]; a smaller share is part of a
            larger one (table 14).
        seed: seeds all random draws.
        tokens: keeps the output of a frozen backbone.

    Raises:
        ValueError: if there are too few tasks, or a task lacks a tier.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        window: int = 8,
        pairs: int = 16,
        negatives: int = 4,
        lambda_ilp: float = 0.1,
        lambda_ivp: float = 0.5,
        data_share: float = 1.0,
        seed: int = 0,
        tokens: TokenFiles | None = None,
    ) -> None:
        found = RolloutsByTask(trajectories, 2, without=tuple(set(ALL_TIERS) - set(TIERS)))
        self.trajectories, self.sentences, self.tasks = trajectories, found.sentences, found.tasks
        rng = np.random.default_rng(seed)
        self.by_task = {
            task: [
                rng.permutation(found.by_task[task][tier])[: max(1, round(data_share * len(found.by_task[task][tier])))]
                for tier in TIERS
            ]
            for task in self.tasks
        }
        self.window, self.pairs, self.negatives, self.seed, self.tokens = window, pairs, negatives, seed, tokens
        self.lambda_ilp, self.lambda_ivp = lambda_ilp, lambda_ivp
        self.settings: dict[str, Any] = {
            "recipe": "vlp-published",
            "tasks": self.tasks,
            "pairs": pairs,
            "negatives": negatives,
            "lambda_ilp": lambda_ilp,
            "lambda_ivp": lambda_ivp,
            "data_share": data_share,
            "recipe_seed": seed,
        }

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """See `Recipe.optimizer`; weight decay on the weights of linear layers, none on biases, norms or tables."""
        linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [each for each in trained if id(each) in linear], "weight_decay": config.weight_decay},
            {"params": [each for each in trained if id(each) not in linear], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS)

    def prepare(self, model: nn.Module, *, progress_bar: bool) -> None:
        """Encode what the token files lack."""
        if self.tokens is not None:
            used = [int(i) for tiers in self.by_task.values() for rollouts in tiers for i in rollouts]
            backbone = expect_model(model, VLPModel).backbone
            self.tokens.fill(backbone, (self._frames(i)[0] for i in used), len(used), progress_bar=progress_bar)

    def batch(self, number: int) -> PublishedBatch:
        """Batch `number` of the endless sequence of this seed."""
        rng = np.random.default_rng([self.seed, number])
        task = str(rng.choice(self.tasks))
        others = [other for other in self.tasks if other != task]
        place: dict[int, int] = {}  # trajectory -> its number in the batch

        def draw(of: str) -> tuple[int, int]:
            tier = int(rng.integers(len(TIERS)))
            return int(rng.choice(self.by_task[of][tier])), tier

        def put(rollout: int) -> int:
            return place.setdefault(rollout, len(place))

        pairs, negatives, labels = [], [], []
        for _ in range(self.pairs):
            (a, rank_a), (b, rank_b) = draw(task), draw(task)
            while a == b:
                b, rank_b = draw(task)
            pairs.append([put(a), put(b)])
            labels.append((np.sign(rank_b - rank_a) + 1) / 2)  # the best tier is first
            negatives.append([put(draw(str(rng.choice(others)))[0]) for _ in range(self.negatives)])
        videos, masks = zip(*map(self._frames, place), strict=True)
        return PublishedBatch(
            torch.from_numpy(np.stack(videos))
            if self.tokens is None
            else torch.stack([*map(self.tokens.read, videos)]),
            torch.from_numpy(np.stack(masks)),
            torch.tensor(pairs),
            torch.tensor(negatives, dtype=torch.int64).view(self.pairs, self.negatives),
            torch.tensor(labels, dtype=torch.float32),
            [str(rng.choice(self.sentences[task])) for _ in pairs],
            [str(rng.choice(self.sentences[str(rng.choice(others))])) for _ in pairs],
        )

    def loss(self, model: nn.Module, batch: PublishedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """VLP eq. 4; see `Recipe.loss`."""
        live = expect_model(model, VLPModel)
        count, size = batch.negatives.shape[1], len(batch.label)
        tokens = batch.videos.float()
        if batch.videos.dtype == torch.uint8:
            tokens = live.encode_frames(batch.videos.flatten(0, 1)).unflatten(0, batch.videos.shape[:2])
        video = live.attend_video(tokens, batch.mask)
        text = live.attend_text(live.encode_text([*batch.instructions, *batch.foreign]))
        own = torch.arange(size, device=batch.label.device)
        a, b = batch.pairs.unbind(1)
        shown = torch.cat([a, b, a, b, batch.negatives.flatten()])
        said = torch.cat([own, own, own + size, own + size, own.repeat_interleave(count)])
        scores = live.compare(video.rows(shown), text.rows(said))
        score_a, score_b, foreign_a, foreign_b = scores[: 4 * size].view(4, size)
        negatives = scores[4 * size :].view(size, count)
        loss = vlp_loss(
            (score_a, score_b, batch.label), (foreign_a, foreign_b), ((score_a, negatives), (score_b, negatives)),
            self.lambda_ilp, self.lambda_ivp,
        )  # fmt: skip
        return {"loss": loss.total, "itp": loss.itp, "ilp": loss.ilp, "ivp": loss.ivp}

    def _frames(self, rollout: int) -> tuple[np.ndarray, np.ndarray]:
        """The frames of a video, uint8 ``[T, H, W, 3]``, and their mask, as in use."""
        frames = self.trajectories[rollout].frames
        chosen, mask = segment_window(0, len(frames), self.window, anchored=False)
        return frames[chosen], mask
