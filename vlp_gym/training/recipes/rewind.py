"""Training of `ReWiNDModel`: demonstrations cut, rewound, and sometimes paired with another task's sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory, sentences_by_task
from vlp_gym.engine.windows import window_indices
from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.rewind import ReWiNDModel, SmallGrid
from vlp_gym.objectives.rewind import rewind_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.training.options import TrainOptions, check_at_least, check_share
from vlp_gym.training.recipe import Batch, Recipe, expect_model

FRAMES_AT_ONCE = 64  # frames per call of a frozen encoder
SHORTEST = 3  # least frames of a clip (the authors' code)
SMALL: dict[str, Any] = {"hidden": 256, "feed_forward": 1024, "from_first": True}
"""With the small encoders the paper's width overfits, and progress needs the change since the first frame."""


@dataclass(frozen=True, kw_only=True)
class RewindOptions(TrainOptions):
    """ReWiND: progress by a causal transformer, trained on rewound videos.

    Attributes:
        batch_size: clips per batch.
        backbone: dinov2+minilm, or small, which needs no download, has half the paper's width and also sees the change
            since the first frame.
        freeze_encoders: with --backbone small, do not train the encoders from --init; each frame is then encoded only
            once. dinov2+minilm is always frozen.
        uneven: share of clips played at an uneven pace, so that the number of frames does not reveal the progress; 0 in
            the paper.
    """

    steps: int = 5_000
    learning_rate: float = 1e-4
    batch_size: int = 32
    backbone: str = "dinov2+minilm"
    freeze_encoders: bool = False
    uneven: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, batch_size=self.batch_size)
        check_share(uneven=self.uneven)
        if self.freeze_encoders and (self.backbone != "small" or self.init is None):
            raise ValueError(
                "--freeze-encoders: expected with rewind, --backbone small and --init; "
                f"got --backbone {self.backbone} and --init {self.init}"
            )

    def build(self, trajectories: Sequence[Trajectory]) -> tuple[ReWiNDModel, RewindRecipe]:
        options = SMALL if self.backbone == "small" else {}
        model = ReWiNDModel(self.backbone, freeze_encoders=self.freeze_encoders, **options)
        recipe = RewindRecipe(
            trajectories, window=model.window, clips=self.batch_size, p_uneven=self.uneven, seed=self.seed
        )
        return model, recipe

    def packages(self) -> dict[str, str]:
        return super().packages() | ({} if self.backbone == "small" else {"transformers": "vlm"})


@dataclass(frozen=True)
class RewindBatch(Batch):
    """B clips of T frames with a sentence each.

    Attributes:
        frames: uint8 ``[B, T, H, W, 3]``; after `RewindRecipe.prepare` with frozen encoders, their output, float
            ``[B, T, ...]``.
        mask: bool ``[B, T]``, False where a shorter clip is padded in front with its first frame.
        progress: float ``[B, T]`` in [0, 1], progress of the demonstration; 0 under another task's sentence.
        matched: bool ``[B]``, the sentence describes the demonstration's task.
        instructions: B sentences.
    """

    frames: Tensor
    mask: Tensor
    progress: Tensor
    matched: Tensor
    instructions: list[str]


class RewindRecipe(Recipe):
    """Batches and loss of ReWiND's training (section 3.2 and the authors' code).

    Only demonstrations, that is successful experts, are used. A clip starts and ends at random frames of one. Its
    progress runs from 0 at its own start to 1 at success and later. Four in five clips are rewound: they play on to
    their end, then some way backwards, with falling progress, so that undoing a task does not look like doing it. One
    clip in five has another task's sentence and progress 0. Clips are subsampled to the window as in use.

    As in the authors' code, frozen encoders encode each demonstration once, before the first step, and the result stays
    in memory. Two things are ours: trained encoders see augmented pixels, and clips may be played at an uneven pace, in
    which time passes without change; at an even pace the number of frames alone reveals much of the progress.

    Args:
        trajectories: rollouts of the training tasks; only demonstrations are used.
        window: T, the model's window.
        clips: B, each of a random task.
        p_rewind: probability that a clip is rewound.
        wrong_share: probability that its sentence is another task's.
        p_uneven: probability that it is played at an uneven pace; 0 in the authors' code.
        seed: seeds all random draws.

    Raises:
        ValueError: for fewer than two tasks, a task without a demonstration, or a number out of range.
        DatasetError: if a trajectory carries no sentences.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        window: int = 16,
        clips: int = 32,
        p_rewind: float = 0.8,
        wrong_share: float = 0.2,
        p_uneven: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, share in (("p_rewind", p_rewind), ("wrong_share", wrong_share), ("p_uneven", p_uneven)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {share}")
        if clips < 1:
            raise ValueError(f"clips: expected at least 1, got {clips}")
        self.tasks = sorted({trajectory.task for trajectory in trajectories})
        experts = [t for t in trajectories if t.tier == "expert" and t.success.any() and len(t.frames) >= SHORTEST]
        self.demonstrations = {task: [expert for expert in experts if expert.task == task] for task in self.tasks}
        if len(self.tasks) < 2:
            raise ValueError(f"expected trajectories of at least two tasks, got {self.tasks}")
        if lacking := [task for task, found in self.demonstrations.items() if not found]:
            raise ValueError(
                f"expected an expert of {SHORTEST} frames or more that succeeds in every task, found none of {lacking}"
            )
        self.sentences = sentences_by_task(trajectories)
        self.window, self.clips, self.seed = window, clips, seed
        self.p_rewind, self.wrong_share, self.p_uneven = p_rewind, wrong_share, p_uneven
        self._encoded: dict[str, list[Tensor]] | None = None  # the demonstrations' frames after frozen encoders
        self.settings: dict[str, Any] = {
            "recipe": "rewind",
            "tasks": self.tasks,
            "window": window,
            "clips": clips,
            "p_rewind": p_rewind,
            "wrong_share": wrong_share,
            "p_uneven": p_uneven,
            "recipe_seed": seed,
        }

    @torch.no_grad()
    def prepare(self, model: nn.Module, *, progress_bar: bool = True) -> None:
        """Encode every demonstration with frozen encoders; does nothing with trained ones."""
        backbone = expect_model(model, ReWiNDModel).backbone
        self._encoded = None
        if not backbone.frozen:
            return
        device = next(model.parameters()).device
        encoded: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        every = list(chain(*self.demonstrations.values()))
        for demonstration in tqdm(every, desc="encoding", unit="demonstration", disable=not progress_bar):
            parts = torch.from_numpy(demonstration.frames).split(FRAMES_AT_ONCE)
            tokens = torch.cat([backbone.encode_frozen(part.to(device)).cpu() for part in parts])
            encoded[demonstration.task].append(tokens)
        self._encoded = encoded

    def batch(self, number: int) -> RewindBatch:
        rng = np.random.default_rng([self.seed, number])
        frames, masks, progress, matched, instructions = [], [], [], [], []
        for _ in range(self.clips):
            task = str(rng.choice(self.tasks))
            which = int(rng.integers(len(self.demonstrations[task])))
            demonstration = self.demonstrations[task][which]
            index, target = clip_frames(demonstration, rewound=bool(rng.random() < self.p_rewind), rng=rng)
            if rng.random() < self.p_uneven:
                shown = uneven_pace(len(index), int(rng.integers(SHORTEST, 2 * self.window + 1)), rng)
                index, target = index[shown], target[shown]
            chosen, mask = window_indices(len(index), self.window, "prefix")
            right = bool(rng.random() >= self.wrong_share)
            named = task if right else str(rng.choice([other for other in self.tasks if other != task]))
            instructions.append(str(rng.choice(self.sentences[named])))
            if self._encoded is None:
                frames.append(torch.from_numpy(demonstration.frames[index[chosen]]))
            else:
                frames.append(self._encoded[task][which][index[chosen]])
            progress.append(target[chosen] * right)
            masks.append(mask)
            matched.append(right)
        return RewindBatch(
            frames=torch.stack(frames),
            mask=torch.from_numpy(np.stack(masks)),
            progress=torch.from_numpy(np.stack(progress).astype(np.float32)),
            matched=torch.tensor(matched),
            instructions=instructions,
        )

    def loss(self, model: nn.Module, batch: RewindBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """See `rewind_loss`; ``matched`` and ``mismatched`` add up to ``loss``."""
        model = expect_model(model, ReWiNDModel)
        backbone, clips, time = model.backbone, *batch.mask.shape
        frames = batch.frames.flatten(0, 1)
        if frames.dtype != torch.uint8:
            tokens = backbone.tokens(frames)
        elif isinstance(backbone, SmallGrid) and not backbone.frozen:
            resized = resize_frames(frames, model.frame_size).unflatten(0, (clips, time))
            tokens = backbone.encode_pixels(augment_clips(resized, generator))
        else:
            tokens = backbone.encode_frames(frames)
        text = model.encode_text(batch.instructions)
        scores = model.score(tokens.unflatten(0, (clips, time)), text, batch.mask)
        assert scores.progress is not None
        parts = rewind_loss(scores.progress, batch.progress, batch.mask, batch.matched)
        return {"loss": parts.total, "matched": parts.matched, "mismatched": parts.mismatched}


def clip_frames(
    demonstration: Trajectory, *, rewound: bool, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The frames of a random clip of a demonstration, and its progress at each.

    Args:
        demonstration: a successful rollout of F >= 3 frames.
        rewound: also play one or more frames backwards from the clip's end, at most to its start.
        rng: draws the start, the end and the number of frames played backwards.

    Returns:
        Frame indices, int64 ``[N]``, and progress, float64 ``[N]`` in (0, 1].
    """
    count, done = len(demonstration.frames), demonstration.first_success
    assert done is not None
    way = done + 1  # frames up to success; later ones also have progress 1
    if rewound:  # in the authors' code these span the middle
        start, stop = 0, 0
        while stop - start < SHORTEST:
            start, stop = int(rng.integers(0, way // 2 + 1)), int(rng.integers(way // 2, count + 1))
    else:
        start = int(rng.integers(0, max(way - SHORTEST, 0) + 1))
        stop = int(rng.integers(start + SHORTEST, count + 1))
    index = np.arange(start, stop)
    if rewound:
        back = int(rng.integers(1, len(index)))
        index = np.concatenate([index, index[-2 : -2 - back : -1]])
    return index, np.minimum((index - start + 1) / (way - start), 1.0)


def uneven_pace(length: int, shown: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Frame indices of a clip at an uneven pace: some frames are repeated, others skipped.

    Args:
        length: L, number of frames of the clip.
        shown: number of frames to show, at least 1.
        rng: draws the number of distinct frames, ``L^u`` with u uniform in [0, 1], which ones, and their repetitions.

    Returns:
        Ascending indices, int64 ``[shown]``, starting with 0, from which progress is counted.
    """
    others = min(int(length ** rng.random()), shown) - 1
    different = np.append(0, 1 + rng.permutation(length - 1)[:others])
    return np.sort(np.append(different, rng.choice(different, shown - len(different))))
