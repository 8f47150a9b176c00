"""Comparison of two videos: by the difference of one score, or by a pairwise head in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation.plan import Key, Pair

Difference: TypeAlias = Callable[[Pair], float]
"""The logit of P(first > second) of a pair."""

KEPT_BYTES = 2 * 2**30  # cache of frame tokens
ASKED_AT_ONCE = 64  # pairs per call of the model
UNDECIDED = 1e-6  # least distance of a probability from 0 and 1


def by_score(scores: Mapping[Key, float]) -> Difference:
    """Bradley-Terry: the difference of the preferences (VLP eq. 3)."""
    return lambda pair: scores[pair[0]] - scores[pair[1]]


def by_pixels(trajectories: Sequence[Trajectory], keys: Iterable[Key]) -> Difference:
    """The baseline: mean absolute pixel difference between a video's first and last frame."""

    @cache
    def change(i: int, start: int, stop: int) -> float:
        first, last = trajectories[i].frames[[start, stop - 1]].astype(np.float64)
        return float(np.abs(last - first).mean())

    return by_score({key: change(key[0], key[2], key[3]) for key in keys})


def by_pairwise_head(
    scorer: VideoScorer, trajectories: Sequence[Trajectory], pairs: Iterable[Pair], *, progress_bar: bool = True
) -> Difference:
    """Query a `PairwiseModel` for each pair in both orders, see `VideoScorer.prefer`.

    Args:
        scorer: scorer of the model for all sentences of the pairs.
        trajectories: the trajectories that the pairs index.
        pairs: all pairs that the returned function must know.
        progress_bar: show a progress bar.
    """
    ordered = sorted(set(pairs))  # neighbours share a video, which is then encoded once
    clips = _Clips(scorer, trajectories)
    chances: list[NDArray[np.float64]] = []
    bar = tqdm(total=len(ordered), desc="asking about pairs", unit="pair", disable=not progress_bar)
    with bar:
        for k in range(0, len(ordered), ASKED_AT_ONCE):
            some = ordered[k : k + ASKED_AT_ONCE]
            a, b = ([clips(pair[side]) for pair in some] for side in (0, 1))
            chances.append(scorer.prefer(a, b, [first[1] for first, _ in some]))
            bar.update(len(some))
    sure = np.clip(np.concatenate(chances) if chances else np.zeros(0), UNDECIDED, 1 - UNDECIDED)
    logits = dict(zip(ordered, np.log(sure / (1 - sure)).tolist(), strict=True))
    return logits.__getitem__


class _Clips:
    """Frame tokens of segments, with a cache of about `KEPT_BYTES`."""

    def __init__(self, scorer: VideoScorer, trajectories: Sequence[Trajectory]) -> None:
        self.scorer, self.trajectories = scorer, trajectories
        self.kept: dict[tuple[int, int, int], Tensor] = {}
        self.bytes = 0

    def __call__(self, key: Key) -> Tensor:
        i, _, start, stop = key
        if (i, start, stop) not in self.kept:
            if self.bytes > KEPT_BYTES:
                self.kept.clear()
                self.bytes = 0
            trajectory = self.trajectories[i]
            clip = self.scorer.clip(trajectory.frames, start, stop, trajectory.name)
            self.kept[i, start, stop] = clip
            self.bytes += clip.numel() * clip.element_size()
        return self.kept[i, start, stop]
