"""How `ReWiNDModel` learns: demonstrations cut, rewound, and now and then under a sentence of another task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vlp_gym.data.dataset import Trajectory
from vlp_gym.data.instructions import training_phrasings
from vlp_gym.models.backbones.dino_minilm import DinoMiniLMBackbone
from vlp_gym.models.resize import resize_frames
from vlp_gym.models.rewind import ReWiNDModel, SmallGrid
from vlp_gym.objectives.rewind import rewind_loss
from vlp_gym.training.augment import augment_clips
from vlp_gym.windows import window_indices

FRAMES_AT_ONCE = 64  # that frozen encoders look at
SHORTEST = 3  # frames of a demonstration that a clip shows at least (the authors' code)


class _Demonstration(NamedTuple):
    trajectory: Trajectory
    first: int  # number of its first frame among all frames of all demonstrations


@dataclass(frozen=True)
class RewindBatch:
    """B clips of T frames with a sentence each.

    Attributes:
        frames: uint8 ``[B, T, H, W, 3]``.
        numbers: int64 ``[B, T]``, which they are among all frames of all demonstrations.
        mask: bool ``[B, T]``, False where a clip is shorter and its first frame is repeated in front of it.
        progress: float ``[B, T]`` in [0, 1], how far the demonstration is; 0 where the sentence is another task's.
        matched: bool ``[B]``, the sentence is the demonstration's own.
        instructions: B sentences.
    """

    frames: Tensor
    numbers: Tensor
    mask: Tensor
    progress: Tensor
    matched: Tensor
    instructions: list[str]

    def to(self, device: torch.device) -> RewindBatch:
        """The same batch on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return RewindBatch(**tensors, instructions=self.instructions)


class RewindRecipe:
    """Batches and loss of ReWiND's training (section 3.2 and the authors' code); a `Recipe` of the training loop.

    Only demonstrations teach: experts that get their task done. A clip begins and ends anywhere in one; its progress is
    the share of the way from its own beginning to the demonstration's end, whatever it shows of it, which is 1 at
    success and after it. Of 5 clips 4 are rewound: having come to their end they go back some way, and the progress
    with them, so that an undone task is not taken for a done one. One clip in 5 is told another task's sentence and has
    no progress at all. Each clip is then subsampled to the window, as an episode is in use.

    What frozen encoders make of the demonstrations is computed once, before the first step, as the authors do, and kept
    in half precision. Encoders that are trained see augmented pixels instead, beyond the authors.

    Also beyond them: clips at an uneven pace, in which time passes while nothing happens. The net has no other clock
    than the number of frames before, and at an even pace that number alone tells most of the progress.

    Args:
        trajectories: of the training tasks only; all but experts that succeed are passed over.
        window: T, that of the model.
        clips: B, each of a task drawn at random.
        p_rewind: probability that a clip is rewound.
        wrong_share: probability that its sentence is another task's.
        p_uneven: probability that it is played at an uneven pace; the authors' 0.
        seed: decides everything.

    Raises:
        ValueError: fewer than two tasks, a task without a demonstration, or a number out of range.
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
        self.demonstrations: dict[str, list[_Demonstration]] = {t: [] for t in sorted({t.task for t in trajectories})}
        first = 0
        for trajectory in trajectories:
            if trajectory.tier == "expert" and trajectory.success.any() and len(trajectory.frames) >= SHORTEST:
                self.demonstrations[trajectory.task].append(_Demonstration(trajectory, first))
                first += len(trajectory.frames)
        self.tasks = list(self.demonstrations)
        if len(self.tasks) < 2:
            raise ValueError(f"expected trajectories of at least two tasks, got {self.tasks}")
        if lacking := [task for task, found in self.demonstrations.items() if not found]:
            raise ValueError(
                f"expected an expert of {SHORTEST} frames or more that succeeds in every task, found none of {lacking}"
            )
        self.window, self.clips, self.seed = window, clips, seed
        self.p_rewind, self.wrong_share, self.p_uneven = p_rewind, wrong_share, p_uneven
        self._frozen: tuple[DinoMiniLMBackbone | SmallGrid, Tensor] | None = (
            None  # a backbone, and what it makes of all frames
        )
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

    def batch(self, number: int) -> RewindBatch:
        """Batch `number` of the endless sequence that the seed defines, the same whatever was drawn before."""
        rng = np.random.default_rng([self.seed, number])
        frames, numbers, masks, progress, matched, instructions = [], [], [], [], [], []
        for _ in range(self.clips):
            task = str(rng.choice(self.tasks))
            demonstration, first = self.demonstrations[task][rng.integers(len(self.demonstrations[task]))]
            index, target = clip_frames(demonstration, rewound=bool(rng.random() < self.p_rewind), rng=rng)
            if rng.random() < self.p_uneven:
                shown = uneven_pace(len(index), int(rng.integers(SHORTEST, 2 * self.window + 1)), rng)
                index, target = index[shown], target[shown]
            chosen, mask = window_indices(len(index), self.window, "prefix")
            right = bool(rng.random() >= self.wrong_share)
            told = task if right else str(rng.choice([other for other in self.tasks if other != task]))
            instructions.append(str(rng.choice(training_phrasings(told))))
            frames.append(demonstration.frames[index[chosen]])
            numbers.append(first + index[chosen])
            progress.append(target[chosen] * right)
            masks.append(mask)
            matched.append(right)
        return RewindBatch(
            frames=torch.from_numpy(np.stack(frames)),
            numbers=torch.from_numpy(np.stack(numbers)),
            mask=torch.from_numpy(np.stack(masks)),
            progress=torch.from_numpy(np.stack(progress).astype(np.float32)),
            matched=torch.tensor(matched),
            instructions=instructions,
        )

    def loss(self, model: nn.Module, batch: RewindBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """See `rewind_loss`; ``matched`` and ``mismatched`` add up to ``loss``.

        Args:
            model: a `ReWiNDModel`.
            batch: the clips.
            generator: of the augmentation.

        Raises:
            TypeError: for any other model.
        """
        if not isinstance(model, ReWiNDModel):
            raise TypeError(f"expected a ReWiNDModel, got {type(model).__name__}")
        clips, time = batch.mask.shape
        backbone = model.backbone
        if backbone.frozen:
            encoded = self._encoded(backbone, batch.frames.device)[batch.numbers.flatten().cpu()]
            tokens = backbone.tokens(encoded.to(batch.frames.device).float())
        else:
            assert isinstance(backbone, SmallGrid)  # the others' are always frozen
            resized = resize_frames(batch.frames.flatten(0, 1), model.frame_size).unflatten(0, (clips, time))
            tokens = backbone.encode_pixels(augment_clips(resized, generator))
        text = model.encode_text(batch.instructions)
        scores = model.score(tokens.unflatten(0, (clips, time)), text, batch.mask)
        assert scores.progress is not None
        parts = rewind_loss(scores.progress, batch.progress, batch.mask, batch.matched)
        return {"loss": parts.total, "matched": parts.matched, "mismatched": parts.mismatched}

    @torch.no_grad()
    def _encoded(self, backbone: DinoMiniLMBackbone | SmallGrid, device: torch.device) -> Tensor:
        """What frozen encoders make of all frames of all demonstrations, float16 ``[F, ...]`` on the CPU."""
        if self._frozen is None or self._frozen[0] is not backbone:
            found = [demonstration for of_task in self.demonstrations.values() for demonstration in of_task]
            found.sort(key=lambda demonstration: demonstration.first)
            encoded = []
            for trajectory, _ in tqdm(found, desc="encoding", unit="demonstration", leave=False, disable=None):
                for frames in torch.from_numpy(trajectory.frames).split(FRAMES_AT_ONCE):
                    encoded.append(backbone.encode_frozen(frames.to(device)).half().cpu())
            self._frozen = backbone, torch.cat(encoded)
        return self._frozen[1]


def clip_frames(
    demonstration: Trajectory, *, rewound: bool, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which frames of a demonstration a clip shows, one by one, and how far it is at each of them.

    Args:
        demonstration: of F >= 3 frames, with success.
        rewound: go back from the clip's end, one frame at least, at most to where it began.
        rng: draws the beginning, the end and how far it goes back.

    Returns:
        Indices ``[N]`` into the frames, and the progress ``[N]`` in (0, 1].
    """
    count, done = len(demonstration.frames), demonstration.first_success
    assert done is not None
    way = done + 1  # frames up to the success; the few that an expert goes on for are as far as that
    if rewound:  # the authors let these span the middle
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
    """Which frames of a clip are shown when some stand still for a while and others are passed over.

    Args:
        length: L, frames of the clip.
        shown: frames to show, at least 1.
        rng: draws how many different ones, from the first alone to nearly all, ``L^u`` with u uniform; which; and how
            long each stands.

    Returns:
        Ascending indices ``[shown]`` into the clip, the first of them 0: progress is counted from there.
    """
    others = min(int(length ** rng.random()), shown) - 1
    different = np.append(0, 1 + rng.permutation(length - 1)[:others])
    return np.sort(np.append(different, rng.choice(different, shown - len(different))))
