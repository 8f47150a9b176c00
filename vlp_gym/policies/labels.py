"""Labels for offline data: rollouts -> two kinds of them -> pairs of segments -> who labels, and how right it was.

VLP's protocol (appendix A.2), but k-means looks at states and actions: where labels are to replace rewards, the choice
of pairs must not read them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import TIERS, Trajectory
from vlp_gym.errors import CheckpointError, DatasetError
from vlp_gym.policies.data import check_recorded
from vlp_gym.policies.saved import read_json
from vlp_gym.preferences.buffer import EQUAL, PreferenceBuffer
from vlp_gym.preferences.labelers import Labeler, agreement, as_labels
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.preferences.segments import Segments
from vlp_gym.schema import Count, Document, Share
from vlp_gym.storage import write_atomic

REPORT = "labels.json"


class LabelReport(Document):
    """What is known about the labels of a run, the file ``labels.json`` beside them.

    Attributes:
        source: who labelled.
        sets: number of trajectories of each kind that k-means found.
        first: pairs whose first segment is better.
        second: pairs whose second segment is better.
        equal: pairs without a better one.
        skipped: pairs that the labeler left out.
        scripted_accuracy: share of the labels that agree with the sums of the environment's rewards, of the
            `scripted_pairs` where both take a side; None if there are none.
        scripted_pairs: see there.
        mtvlp_accuracy: the same against the tiers of the two trajectories, of the `mtvlp_pairs` of different tiers.
        mtvlp_pairs: see there.
        unfinished: where a person stopped before the end: the label of every pair, None of those without one.
    """

    format: Literal[1]
    source: str
    sets: tuple[Count, Count] | None
    first: Count
    second: Count
    equal: Count
    skipped: Count
    scripted_accuracy: Share | None
    scripted_pairs: Count
    mtvlp_accuracy: Share | None
    mtvlp_pairs: Count
    unfinished: list[Share | None] | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.first + self.second + self.equal + self.skipped} pairs labelled by {self.source}: {self.first} "
            f"first, {self.second} second, {self.equal} equal, {self.skipped} skipped"
        ]
        for name, share, count in (
            ("scripted", self.scripted_accuracy, self.scripted_pairs),
            ("MTVLP", self.mtvlp_accuracy, self.mtvlp_pairs),
        ):
            if share is not None:
                lines.append(f"accuracy against {name} labels: {share:.3f} of the {count} that take a side")
        return "\n".join(lines)


@dataclass(frozen=True)
class Labelled:
    """Labelled pairs of segments and what is known about them.

    Attributes:
        buffer: the pairs that were not skipped.
        report: class balance and accuracy.
    """

    buffer: PreferenceBuffer
    report: LabelReport

    def unfinished(self, labels: NDArray[np.float64] | None) -> Labelled:
        """The same, to be gone on with: labels of all pairs, float64 ``[N]``, NaN of those without one."""
        given = [] if labels is None else [None if math.isnan(label) else label for label in labels.tolist()]
        return replace(self, report=self.report.model_copy(update={"unfinished": given}))

    def save(self, folder: str | Path) -> None:
        """Write both; `PreferenceBuffer.load` reads the pairs."""
        self.buffer.save(folder)
        write_atomic(Path(folder) / REPORT, (self.report.model_dump_json(indent=2) + "\n").encode())


def store_of(trajectories: Sequence[Trajectory], length: int = 50) -> SegmentStore:
    """The trajectories as episodes, numbered in their order, with their frames.

    Args:
        trajectories: with observations and actions.
        length: L, environment steps in a segment; a trajectory shorter than that is one segment.

    Raises:
        DatasetError: see `check_recorded`.
        ValueError: for a length below 1.
    """
    check_recorded(trajectories)
    size = max(trajectory.frames.shape[1] for trajectory in trajectories)
    store = SegmentStore(length, len(trajectories), frame_size=size)
    for t in trajectories:
        frames = {int(step): frame for step, frame in zip(t.step, t.frames, strict=True)}
        assert t.observation is not None
        assert t.action is not None
        store.put(t.observation[:-1], t.action, t.episode_reward, frames)
    return store


def two_sets(trajectories: Sequence[Trajectory], seed: int = 0) -> NDArray[np.int64]:
    """Split trajectories into two kinds by k-means over their mean state and action (VLP, appendix A.2).

    The paper does not name the features; no reward, success or tier is read.

    Args:
        trajectories: with observations and actions.
        seed: seeds the first centroid.

    Returns:
        The kind of each, int64 ``[N]`` of 0 and 1, both there.

    Raises:
        DatasetError: there is one trajectory only, or k-means finds one kind only.
    """
    from vlp_gym.evaluation.metrics import kmeans_two_sets  # needs scipy
    from vlp_gym.evaluation.plan import state_features

    check_recorded(trajectories)
    if len(trajectories) < 2:
        raise DatasetError(f"{trajectories[0].name}: expected at least two trajectories to compare, got one")
    sets = kmeans_two_sets(state_features(trajectories), seed=seed)
    if set(sets.tolist()) != {0, 1}:
        raise DatasetError(
            f"task {trajectories[0].task}: k-means found one kind of trajectory only, the other set is empty; add "
            "trajectories that differ, such as other tiers"
        )
    return sets


def draw_pairs(
    store: SegmentStore, sets: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[Segments, Segments]:
    """Draw pairs with a segment of each kind: a trajectory uniformly, then its first step uniformly.

    Which kind comes first is drawn too, so that labels of one class do not tell the kinds apart.

    Args:
        store: from `store_of`.
        sets: kind of each episode, see `two_sets`.
        count: N.
        rng: random generator.
    """
    spans = []
    for kind in (0, 1):
        members = np.flatnonzero(sets == kind)
        for number in rng.choice(members, count).tolist():
            steps = store.steps(number)
            start = int(rng.integers(max(steps - store.length, 0) + 1))
            spans.append((number, start, min(start + store.length, steps)))
    order = np.arange(2 * count).reshape(2, count)
    order = np.where(rng.random(count) < 0.5, order, order[::-1])
    both = store.cut(spans)
    return both[order[0]], both[order[1]]


class TierLabeler:
    """MTVLP's labels: the segment of the trajectory of the better tier wins; of one tier, both are equal.

    Args:
        trajectories: the episodes in their order, of the tiers "expert", "medium" and "random".

    Raises:
        DatasetError: one is of another tier.
    """

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        for trajectory in trajectories:
            if trajectory.tier not in TIERS:
                raise DatasetError(f"{trajectory.name}: expected a tier of {', '.join(TIERS)}, which alone are ranked")
        self._ranks = np.array([-TIERS.index(trajectory.tier) for trajectory in trajectories])

    def __call__(self, first: Segments, second: Segments) -> NDArray[np.float64]:
        """Labels, float64 ``[N]``."""
        return np.asarray(np.heaviside(self.difference(first, second), EQUAL))

    def difference(self, first: Segments, second: Segments) -> NDArray[np.float64]:
        """Ranks of the first less those of the second, float64 ``[N]``."""
        ranks = [self._ranks[[span.episode for span in side.spans]] for side in (first, second)]
        return np.asarray(ranks[0] - ranks[1], np.float64)


class GoingOn:
    """Asks a labeler about the pairs that have no label yet, and remembers all answers.

    Args:
        labeler: is asked.
        known: earlier labels of all pairs, NaN of those without one; None: there are none.
    """

    def __init__(self, labeler: Labeler, known: NDArray[np.float64] | None = None) -> None:
        self.labeler, self.known = labeler, known

    def __call__(self, first: Segments, second: Segments) -> NDArray[np.float64]:
        """Labels, float64 ``[N]``; raises KeyboardInterrupt if a person stops before there is one."""
        labels = np.full(len(first), np.nan) if self.known is None else self.known.copy()
        rows = np.flatnonzero(np.isnan(labels))
        labels[rows] = as_labels(self.labeler(first[rows], second[rows]), len(rows), self.labeler)
        if self.interrupted and np.isnan(labels).all():
            raise KeyboardInterrupt
        self.known = labels
        return labels

    @property
    def interrupted(self) -> bool:
        """Whether a person has stopped before the end."""
        return bool(getattr(self.labeler, "interrupted", False))


class CoinLabeler:
    """Labels of chance, for comparison.

    Args:
        seed: seeds the coin.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, first: Segments, second: Segments) -> NDArray[np.float64]:
        """Labels, float64 ``[N]`` of 0 and 1."""
        return self.rng.integers(2, size=len(first)).astype(np.float64)


def label_pairs(
    trajectories: Sequence[Trajectory],
    labeler: Labeler,
    *,
    source: str,
    pairs: int = 100,
    length: int = 50,
    seed: int = 0,
) -> Labelled:
    """Draw pairs of segments of one task and have them labelled.

    Args:
        trajectories: of one task, with observations and actions.
        labeler: asked once, with all pairs.
        source: its name, for the report.
        pairs: number of pairs.
        length: environment steps in a segment.
        seed: seeds k-means and the pairs; the labeler has its own.

    Raises:
        DatasetError: see `two_sets`; or all pairs were skipped.
        ValueError: for a number of pairs or length below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    sets, store = two_sets(trajectories, seed), store_of(trajectories, length)
    first, second = draw_pairs(store, sets, pairs, np.random.default_rng([seed, 1]))
    labels = as_labels(labeler(first, second), pairs, labeler)
    zero = int((sets == 0).sum())
    return _labelled(trajectories, first, second, labels, source, (zero, len(sets) - zero))


def load_labels(folder: str | Path, *, source: str, pairs: int, length: int) -> Labelled:
    """What `Labelled.save` wrote, if it is what is asked for.

    Args:
        folder: folder of the labels.
        source: who should have labelled.
        pairs: expected number of pairs, skipped ones included; not compared for labels from an earlier run.
        length: expected steps in a segment; not compared either.

    Raises:
        CheckpointError: a file is missing or damaged.
        ValueError: the labels are others.
    """
    path = Path(folder) / REPORT
    report, buffer = read_json(LabelReport, path), PreferenceBuffer.load(folder)
    if (count := report.first + report.second + report.equal) != len(buffer):
        raise CheckpointError(f"{path}: expected the report of {len(buffer)} labelled pairs, got that of {count}")
    found = report.source, count + report.skipped, buffer.mask.shape[2]
    expected = (source, pairs, length) if report.sets is not None else (source, *found[1:])
    if found != expected:
        raise ValueError(
            f"{folder} holds other labels: {found[1]} pairs of {found[2]} steps by {found[0]}, not {expected[1]} of "
            f"{expected[2]} by {expected[0]}; choose another --out"
        )
    return Labelled(buffer, report)


def find_pairs(trajectories: Sequence[Trajectory], buffer: PreferenceBuffer, source: str) -> Labelled:
    """Labels that were given earlier, checked against the data that they are about.

    Args:
        trajectories: with observations and actions.
        buffer: pairs of segments of them.
        source: where the pairs are from, for errors and the report.

    Raises:
        DatasetError: there are no pairs, or a segment is not in the trajectories.
    """
    if not len(buffer):
        raise DatasetError(f"{source}: expected labelled pairs of segments, got none")
    store = store_of(trajectories, buffer.mask.shape[2])
    places: dict[bytes, list[tuple[int, int]]] = {}
    for number, t in enumerate(trajectories):
        for step, row in enumerate(np.concatenate([np.asarray(t.observation)[:-1], np.asarray(t.action)], axis=1)):
            places.setdefault(row.astype(np.float32).tobytes(), []).append((number, step))
    spans = []
    for pair in range(len(buffer)):
        for side in range(2):
            rows = buffer.inputs[pair, side, buffer.mask[pair, side]]
            span = _find(rows, places.get(rows[0].tobytes(), ()), trajectories)
            if span is None:
                raise DatasetError(
                    f"{source}: labels of another data set: segment {side} of pair {pair} is not in these "
                    f"{len(trajectories)} trajectories"
                )
            spans.append(span)
    first, second = store.cut(spans[::2]), store.cut(spans[1::2])
    return _labelled(trajectories, first, second, buffer.labels.astype(np.float64), source, None)


def _find(
    rows: NDArray[np.float32], places: Sequence[tuple[int, int]], trajectories: Sequence[Trajectory]
) -> tuple[int, int, int] | None:
    for number, start in places:
        t, stop = trajectories[number], start + len(rows)
        if stop <= len(t.episode_reward):
            own = np.concatenate([np.asarray(t.observation)[start:stop], np.asarray(t.action)[start:stop]], axis=1)
            if np.array_equal(own, rows):
                return number, start, stop
    return None


def _labelled(
    trajectories: Sequence[Trajectory],
    first: Segments,
    second: Segments,
    labels: NDArray[np.float64],
    source: str,
    sets: tuple[int, int] | None,
) -> Labelled:
    if np.isnan(labels).all():
        raise DatasetError(f"{source}: all {len(labels)} pairs were skipped, so there is nothing to learn from")
    scripted, judged = agreement(labels, first.returns - second.returns)
    ranked = all(trajectory.tier in TIERS for trajectory in trajectories)
    tiers, compared = float("nan"), 0
    if ranked:
        tiers, compared = agreement(labels, TierLabeler(trajectories).difference(first, second))
    report = LabelReport(
        format=1,
        source=source,
        sets=sets,
        first=int((labels > EQUAL).sum()),
        second=int((labels < EQUAL).sum()),
        equal=int((labels == EQUAL).sum()),
        skipped=int(np.isnan(labels).sum()),
        scripted_accuracy=None if math.isnan(scripted) else scripted,
        scripted_pairs=judged,
        mtvlp_accuracy=None if math.isnan(tiers) else tiers,
        mtvlp_pairs=compared,
    )
    given = labels[~np.isnan(labels)]
    if len(np.unique(given)) == 1:
        effect = "nothing is learned from them" if given[0] == EQUAL else "they may only say which segment comes first"
        warnings.warn(f"{source}: all {len(given)} labels are {given[0]:g}: {effect}", stacklevel=3)
    buffer = PreferenceBuffer(max(len(labels), 1))
    buffer.add(first, second, labels, soft=True)
    return Labelled(buffer, report)
