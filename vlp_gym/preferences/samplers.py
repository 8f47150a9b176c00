"""The choice of pairs to label: candidates are drawn from the newest episodes, and a few are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.reward import RewardEnsemble
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.preferences.segments import Segments

Sampler = Literal[
    "uniform", "disagreement", "entropy", "k-center", "k-center+disagreement", "k-center+entropy", "k-means"
]
Rows = NDArray[np.int64]

_REDRAWS = 64  # with two different segments or more, at most every other draw gives the same one twice


@dataclass(frozen=True, eq=False)
class Candidates:
    """M pairs to choose from, and what the choice depends on.

    Attributes:
        first: M segments.
        second: M segments.
        ensemble: the learned reward; the samplers by disagreement and entropy need one.
        labelled: pairs labelled so far.
    """

    first: Segments
    second: Segments
    ensemble: RewardEnsemble | None = None
    labelled: PreferenceBuffer | None = None

    def preferences(self) -> NDArray[np.float64]:
        """P(first > second) for each member, ``[E, M]``."""
        if self.ensemble is None:
            raise ValueError('this sampler needs an ensemble that has been fitted, got None; ask by "uniform" first')
        return self.ensemble.preferences(self.first, self.second)


_Choice = Callable[[Candidates, int, np.random.Generator], Rows]


def choose_pairs(
    store: SegmentStore,
    ensemble: RewardEnsemble | None,
    count: int,
    rng: np.random.Generator,
    *,
    sampler: Sampler,
    newest: int | None = 100,
    candidates: int = 10,
    labelled: PreferenceBuffer | None = None,
) -> tuple[Segments, Segments]:
    """Draw pairs of two different segments and keep those that are most worth labelling.

    Args:
        store: source of the segments.
        ensemble: the learned reward; "uniform", "k-center" and "k-means" need none.
        count: N, number of pairs kept.
        rng: random generator.
        sampler: name of a sampler, see `SAMPLERS`.
        newest: number of newest episodes to draw from; fewer are nearer to the current policy. None draws from all.
        candidates: candidate pairs drawn per pair kept ("uniform" keeps all that it draws).
        labelled: pairs labelled so far; the k-center samplers keep away from them, as in B-Pref.

    Returns:
        The first and the second segments, N each.

    Raises:
        ValueError: for an unknown sampler, a number below 1, a missing ensemble, or only one segment to draw.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {get_args(Sampler)}, got {sampler!r}")
    if count < 1 or candidates < 1:
        raise ValueError(f"count and candidates must be at least 1, got {count} and {candidates}")
    first, second = _draw_pairs(store, count if sampler == "uniform" else count * candidates, rng, newest)
    rows = SAMPLERS[sampler](Candidates(first, second, ensemble, labelled), count, rng)
    return first[rows], second[rows]


def uniform(pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """A random choice."""
    return rng.permutation(len(pool.first))[:count]


def disagreement(pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """The pairs whose P(first > second) varies most between the members (Christiano et al., 2017; PEBBLE)."""
    return _largest(pool.preferences().std(0), count)


def entropy(pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """The pairs with the largest mean entropy of the members, as in B-Pref's code.

    The entropy of their mean would also count disagreement, which is another sampler.
    """
    return _largest(mean_entropy(pool.preferences()), count)


def k_center(pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """The pairs that cover the candidates best, each the farthest from those before (Sener & Savarese, 2018)."""
    return _cover(pool, np.arange(len(pool.first)), count, rng)


def k_center_on_half(by: _Choice, pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """`k_center` on the half that another sampler chooses."""
    return _cover(pool, by(pool, max(len(pool.first) // 2, count), rng), count, rng)


def k_means(pool: Candidates, count: int, rng: np.random.Generator) -> Rows:
    """Pairs across two kinds of behaviour: one segment from each of two sets that k-means finds (VLP, appendix A).

    VLP splits whole trajectories; here each segment counts by its mean state and action, so that one long episode can
    be split too. If there are too few pairs across the sets, pairs within a set follow.
    """
    from vlp_gym.evaluation.metrics import kmeans_two_sets  # needs scipy, which the other samplers do not

    features = np.concatenate([_mean_inputs(pool.first), _mean_inputs(pool.second)])
    sets = kmeans_two_sets(features, seed=int(rng.integers(2**31))).reshape(2, -1)
    across = sets[0] != sets[1]
    return np.concatenate([rng.permutation(np.flatnonzero(rows)) for rows in (across, ~across)])[:count]


SAMPLERS: dict[Sampler, _Choice] = {
    "uniform": uniform,
    "disagreement": disagreement,
    "entropy": entropy,
    "k-center": k_center,
    "k-center+disagreement": partial(k_center_on_half, disagreement),
    "k-center+entropy": partial(k_center_on_half, entropy),
    "k-means": k_means,
}
"""Each takes M candidates, the number to keep (at most M) and a generator, and returns the rows kept, int64."""


def mean_entropy(preferences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean entropy of the members in nats, ``[M]``, from P ``[E, M]``."""
    sides = np.stack([preferences, 1 - preferences])
    return -(sides * np.log(np.where(sides > 0, sides, 1.0))).sum(0).mean(0)


def greedy_k_center(
    points: NDArray[Any], count: int, rng: np.random.Generator, covered: NDArray[Any] | None = None
) -> Rows:
    """Choose points, each the farthest from those before it and from the covered ones.

    Args:
        points: ``[M, D]``.
        count: number of points, at most M.
        rng: chooses the first point if nothing is covered yet.
        covered: ``[C, D]``; None is the same as C = 0.

    Returns:
        Their rows in the order of the choice, int64 ``[count]``.
    """
    points = np.asarray(points, np.float64)
    nearest = np.full(len(points), np.inf)
    covered = points[:0] if covered is None else covered
    for start in range(0, len(covered), 1024):
        nearest = np.minimum(nearest, _squared_distances(points, covered[start : start + 1024]).min(1))
    rows: list[int] = []
    for _ in range(count):
        row = int(rng.integers(len(points)) if np.isinf(nearest).all() else nearest.argmax())
        rows.append(row)
        nearest = np.minimum(nearest, _squared_distances(points, points[[row]])[:, 0])
        nearest[row] = -1.0  # not chosen twice, even if all that is left are copies of it
    return np.array(rows, np.int64)


def _cover(pool: Candidates, rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Greedy k-center on some candidates, by the states of both segments without the actions, as in B-Pref's code."""
    points = np.concatenate([side.states[rows].reshape(len(rows), -1) for side in (pool.first, pool.second)], axis=1)
    covered = None
    if pool.labelled is not None and len(pool.labelled):
        covered = pool.labelled.inputs[..., : pool.first.states.shape[2]].reshape(len(pool.labelled), -1)
    return rows[greedy_k_center(points, count, rng, covered)]


def _squared_distances(points: NDArray[Any], centres: NDArray[Any]) -> NDArray[np.float64]:
    """Between points ``[M, D]`` and ``[C, D]``, float64 ``[M, C]``: in float32 the difference would lose digits."""
    centres = np.asarray(centres, np.float64)
    squares = np.einsum("ij,ij->i", points, points)[:, None] + np.einsum("ij,ij->i", centres, centres)
    return np.maximum(squares - 2 * (points @ centres.T), 0.0)


def _mean_inputs(segments: Segments) -> NDArray[np.float64]:
    """Mean state and action over the real steps, ``[N, S + A]``; the padding is zeros."""
    steps = np.maximum(segments.mask.sum(1), 1)[:, None]
    return segments.inputs.sum(1) / steps


def _largest(values: NDArray[np.float64], count: int) -> Rows:
    return (-values).argsort(kind="stable")[:count]


def _draw_pairs(
    store: SegmentStore, count: int, rng: np.random.Generator, newest: int | None
) -> tuple[Segments, Segments]:
    """Draw pairs; a second segment that is the same as its first is drawn again."""
    first, second = (store.sample(count, rng, newest=newest) for _ in range(2))
    for _ in range(_REDRAWS):
        same = [row for row, span in enumerate(first.spans) if span == second.spans[row]]
        if not same:
            return first, second
        order = np.arange(count)
        order[same] = count + np.arange(len(same))
        second = Segments.join([second, store.sample(len(same), rng, newest=newest)])[order]
    raise ValueError("expected at least two different segments to compare, but the episodes have only one")
