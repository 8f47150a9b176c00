"""Comparison of two videos: by one score of each, by a sum over steps, or by a pairwise head in both orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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


def by_sum(trajectories: Sequence[Trajectory], values: Mapping[int, NDArray[np.float64]], steps: int) -> Difference:
    """The sum of the values at a segment's steps, as rewards of models of single frames are compared (VLP, table 15).

    Args:
        trajectories: the trajectories that the pairs index.
        values: trajectory -> the values of its frames, float ``[F]``; they are interpolated between frames, and held
            after the last one.
        steps: environment steps of a segment, counted from its first frame.
    """

    @cache
    def total(i: int, start: int) -> float:
        step = trajectories[i].step
        return float(np.interp(step[start] + 1 + np.arange(steps), step, values[i]).sum())

    return lambda pair: total(pair[0][0], pair[0][2]) - total(pair[1][0], pair[1][2])


@dataclass(frozen=True)
class Answers:
    """What a pairwise head says: the logits of P(first > second).

    Attributes:
        both: pair -> the logit of the mean over both orders.
        first: pair -> the logit where its first video was shown first.
        second: pair -> the logit where its first video was shown second.
    """

    both: dict[Pair, float]
    first: dict[Pair, float]
    second: dict[Pair, float]


def by_pairwise_head(
    scorer: VideoScorer, trajectories: Sequence[Trajectory], pairs: Iterable[Pair], *, progress_bar: bool = True
) -> Answers:
    """Query a `PairwiseModel` for each pair in both orders, see `VideoScorer.prefer_in_each_order`.

    Args:
        scorer: scorer of the model for all sentences of the pairs.
        trajectories: the trajectories that the pairs index.
        pairs: all pairs to know; a pair and the same one turned round are asked about once.
        progress_bar: show a progress bar.
    """
    ordered = sorted({min((a, b), (b, a)) for a, b in pairs})  # neighbours share a video, which is then encoded once
    clips = _Clips(scorer, trajectories)
    chances: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    bar = tqdm(total=len(ordered), desc="asking about pairs", unit="pair", disable=not progress_bar)
    with bar:
        for k in range(0, len(ordered), ASKED_AT_ONCE):
            some = ordered[k : k + ASKED_AT_ONCE]
            left, right = ([clips(pair[side]) for pair in some] for side in (0, 1))
            chances.append(scorer.prefer_in_each_order(left, right, [one[1] for one, _ in some]))
            bar.update(len(some))
    each = np.concatenate(chances)
    answers = Answers({}, {}, {})
    logits = zip(ordered, _logit(each.mean(1)), _logit(each[:, 0]), _logit(each[:, 1]), strict=True)
    for (a, b), both, first, second in logits:
        answers.both[a, b], answers.first[a, b], answers.second[a, b] = both, first, second
        answers.both[b, a], answers.first[b, a], answers.second[b, a] = -both, -second, -first
    return answers


def _logit(chances: NDArray[np.float64]) -> list[float]:
    sure = np.clip(chances, UNDECIDED, 1 - UNDECIDED)
    return [float(logit) for logit in np.log(sure / (1 - sure))]


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
