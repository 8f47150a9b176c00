"""Labelers, which compare pairs of segments: a scripted teacher, the rewards that were paid, or a reward model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.engine.windows import segment_window, window_indices
from vlp_gym.errors import QueryError
from vlp_gym.models.protocol import RewardModel
from vlp_gym.preferences.segments import EpisodeRecord, Segments, Span
from vlp_gym.preferences.teachers import ScriptedTeacher, TeacherName, scripted_teacher
from vlp_gym.rewards.shaping import gated_progress
from vlp_gym.text import normalize_instruction

Kind = Literal["reward", "preference"]
Floats = NDArray[np.float64]


class Labeler(Protocol):
    """A function of N first and N second segments."""

    def __call__(self, first: Segments, second: Segments, /) -> Floats:
        """Labels, float64 ``[N]``: 1 (the first is better), 0 (the second), 0.5 (equal) or NaN (skipped)."""
        ...


def check_labeler(labeler: object) -> None:
    """Raise TypeError unless this can be called with two `Segments`."""
    if isinstance(labeler, type) or not callable(labeler):
        got = f"the class {labeler.__name__}; make one: {labeler.__name__}(...)" if isinstance(labeler, type) else None
        raise TypeError(f"expected a labeler, called with first and second segments, got {got or repr(labeler)}")


def as_labels(labels: Any, count: int, labeler: object) -> Floats:
    """What a labeler returned, an array, tensor or list, as float64 ``[N]``.

    Raises:
        ValueError: it is not N numbers in [0, 1] or NaN.
    """
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    got = f"{array.dtype} {list(array.shape)}"
    if array.shape == (count,) and array.dtype.kind in "biuf":
        array = array.astype(np.float64)
        wrong = array[~np.isnan(array) & ~((array >= 0) & (array <= 1))]
        if not len(wrong):
            return array
        got = str(wrong[0])
    name = getattr(labeler, "__name__", type(labeler).__name__)
    raise ValueError(f"expected {count} labels in [0, 1], or NaN to skip a pair, from the labeler {name}, got {got}")


class ScriptedLabeler:
    """Labels from the environment's own rewards, for comparison: no reward model is asked.

    Args:
        name: a teacher of B-Pref ("oracle", "mistake", "noisy", "skip", "equal", "myopic"), or your own one.
        seed: seeds its mistakes.
    """

    def __init__(self, name: TeacherName | ScriptedTeacher = "oracle", seed: int = 0) -> None:
        self.teacher = scripted_teacher(name) if isinstance(name, str) else name
        self.rng = np.random.default_rng(seed)

    def __call__(self, first: Segments, second: Segments) -> Floats:
        """The thresholds of "skip" and "equal" are shares of the mean return of these segments."""
        mean = float(np.concatenate([first.returns, second.returns]).mean())
        return np.asarray(self.teacher(first, second, self.rng, mean_return=mean), np.float64)


class RecordedLabeler:
    """Labels from the scores that the reward model gave while the agent was acting: the larger sum wins.

    The score is what ``reward="progress"`` pays, or the preference of a model without progress. No model runs.

    Args:
        margin: skip a pair whose P(first > second) = sigmoid(difference of the sums) is nearer to 0.5 than this.
        soft: the label is that probability.
    """

    def __init__(self, *, margin: float = 0.0, soft: bool = False) -> None:
        self.margin, self.soft = check_margin(margin), soft

    def __call__(self, first: Segments, second: Segments) -> Floats:
        """A step without a score takes the score before it."""
        sums = np.array(_each(self._sum, first, second))
        return decide(_sigmoid(sums[0] - sums[1]), self.margin, soft=self.soft)

    def _sum(self, record: EpisodeRecord | None, span: Span) -> float:
        known = {} if record is None else record.scores
        held = max((step for step in known if step <= span.start + 1), default=None)
        if held is None or max(known) < span.stop:  # the last frame of an episode always has a score
            raise QueryError(f"scores are missing of {span}; wrap the environment in mode='async'")
        total = 0.0
        for step in range(span.start + 1, span.stop + 1):
            held = step if step in known else held
            total += known[held]
        return total


class ModelLabeler:
    """Labels from a reward model that looks at whole segments.

    Args:
        model: a `QueryEngine` that has encoded the segments' frames, whose tokens are used; or a name, folder, hub id
            or live `RewardModel`, which encodes frames where they were kept and else takes tokens, which must come
            from the same model. A named model runs on CUDA if there is one.
        instruction: what is to be done, in one sentence.
        kind: "preference" compares f of T frames spread over each segment (VLP eq. 3), or asks the model's pairwise
            head in both orders and takes the mean; "reward" compares the sums of the rewards that the model pays.
        margin: see `RecordedLabeler`.
        soft: see there.

    Raises:
        InstructionError: for an instruction that is blank, or over the model's limit.
        ValueError: for a kind that does not exist, or a margin outside [0, 0.5).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel | QueryEngine,
        instruction: str,
        *,
        kind: Kind = "preference",
        margin: float = 0.0,
        soft: bool = False,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
        sentence = normalize_instruction(instruction)
        self.kind, self.margin, self.soft = kind, check_margin(margin), soft
        self._trusts_tokens = isinstance(model, QueryEngine)
        self.engine = model if isinstance(model, QueryEngine) else QueryEngine(model)
        self._text = self.engine.encode_text(sentence)

    def __call__(self, first: Segments, second: Segments) -> Floats:
        """Wait for the model; the engine's other work goes on afterwards.

        Raises:
            QueryError: for segments without frames and tokens, what the model raises, or if it answers NaN or inf.
        """
        return self.engine.exclusively(lambda: self._label(first, second))  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _label(self, first: Segments, second: Segments) -> Floats:
        memory = _Memory(self.engine, self._trusts_tokens)
        if self.kind == "reward":
            sums = np.array(_each(partial(self._rewards, memory), first, second))
            probability = _sigmoid(sums[0] - sums[1])
        elif self.engine.model.pairwise:
            probability = self._ask_in_both_orders(_each(memory.window, first, second))
        else:
            windows = _each(memory.window, first, second)
            probability = _sigmoid(np.subtract(*map(self._preferences, windows)))
        return decide(probability, self.margin, soft=self.soft)

    def _preferences(self, windows: Sequence[Any]) -> Floats:
        """f of each window, the mean over its cameras."""
        tokens, masks = (torch.cat(parts) for parts in zip(*windows, strict=True))
        text = self._text.expand(len(tokens), -1, -1)
        f = self.engine.model.score(tokens, text, masks, where=f"{len(windows)} segments").preference
        cameras = len(tokens) // len(windows)
        return f.double().cpu().numpy().reshape(len(windows), cameras).mean(1)

    def _ask_in_both_orders(self, windows: Sequence[Sequence[Any]]) -> Floats:
        a, b = (torch.cat([tokens for tokens, _ in side]) for side in windows)
        text, where = self._text.expand(len(a), -1, -1), f"{len(windows[0])} pairs of segments"
        both = self.engine.model.prefer_in_both_orders(a, b, text, where=where)
        return both.double().cpu().numpy().reshape(len(windows[0]), -1).mean(1)

    def _rewards(self, memory: _Memory, record: EpisodeRecord | None, span: Span) -> float:
        """The sum of what the model pays for the frames after the steps of a segment."""
        kept = memory.steps(record, span)
        chosen = [number for number, step in enumerate(kept) if span.start < step <= span.stop]
        if not chosen:
            raise QueryError(f"no frame was kept of the steps of {span}")
        tokens = memory.tokens(record, kept[: chosen[-1] + 1])
        windows = [window_indices(number + 1, self.engine.window, self.engine.history) for number in chosen]
        total = 0.0
        for camera in range(tokens.shape[1]):
            rows = torch.stack([tokens[torch.from_numpy(indices), camera] for indices, _ in windows])
            mask = torch.from_numpy(np.stack([mask for _, mask in windows])).to(rows.device)
            scores = self.engine.model.score(rows, self._text.expand(len(rows), -1, -1), mask, where=str(span))
            if scores.progress is None:
                total += float(scores.preference.sum())
            else:
                gates = [None] * len(rows) if scores.relevance is None else scores.relevance.tolist()
                total += sum(map(gated_progress, scores.progress[:, -1].tolist(), gates))
        return total / tokens.shape[1] * (span.stop - span.start) / len(chosen)


class _Memory:
    """Frame tokens of the episodes; each frame is encoded at most once."""

    def __init__(self, engine: QueryEngine, trusts_tokens: bool) -> None:
        self.model, self.size, self.trusts_tokens = engine.model, engine.window, trusts_tokens
        self._encoded: dict[tuple[int, int], Tensor] = {}

    def steps(self, record: EpisodeRecord | None, span: Span) -> list[int]:
        """The steps with a frame."""
        if record is None or not (record.tokens or record.frames):
            raise QueryError(
                f"{span} has no frames; keep tokens (SegmentStore(keep_tokens=True)) or frames (frame_size=112), and "
                "wrap the environment so that a model looks at it"
            )
        return sorted(record.tokens if self._takes_tokens(record) else record.frames)

    def tokens(self, record: EpisodeRecord | None, steps: Sequence[int]) -> Tensor:
        """Tokens of some frames, ``[F, C, K, D]``."""
        assert record is not None
        if self._takes_tokens(record):
            return torch.stack([record.tokens[step] for step in steps]).to(self.model.device)
        new = sorted({step for step in steps if (record.number, step) not in self._encoded})
        if new:
            frames = torch.from_numpy(np.stack([record.frames[step] for step in new]))
            rows = self.model.encode_frames(frames, where=f"episode {record.number}")[:, None]
            self._encoded |= {(record.number, step): row for step, row in zip(new, rows, strict=True)}
        return torch.stack([self._encoded[record.number, step] for step in steps])

    def window(self, record: EpisodeRecord | None, span: Span) -> tuple[Tensor, Tensor]:
        """The `segment_window` from before a segment's first step on: tokens ``[C, T, K, D]``, mask ``[C, T]``."""
        steps = self.steps(record, span)
        kept = [number for number, step in enumerate(steps) if span.start <= step <= span.stop]
        if not kept:
            raise QueryError(f"no frame was kept of the steps of {span}")
        indices, mask = segment_window(kept[0], kept[-1] + 1, self.size, anchored=self.model.anchored)
        rows = self.tokens(record, [steps[index] for index in indices]).transpose(0, 1)
        return rows, torch.from_numpy(mask).to(rows.device).expand(len(rows), -1)

    def _takes_tokens(self, record: EpisodeRecord) -> bool:
        return bool(record.tokens) and (self.trusts_tokens or not record.frames)


def decide(probability: Floats, margin: float, *, soft: bool) -> Floats:
    """Labels from P(first > second), ``[N]``: the likelier side, NaN within `margin` of 0.5.

    Example:
        >>> decide(np.array([0.9, 0.3, 0.52, 0.5]), 0.0, soft=False).tolist()
        [1.0, 0.0, 1.0, 0.5]
        >>> decide(np.array([0.9, 0.52]), 0.1, soft=True).tolist()
        [0.9, nan]
    """
    labels = probability.copy() if soft else (np.sign(probability - 0.5) + 1) / 2
    labels[np.abs(probability - 0.5) < margin] = np.nan
    return labels


def agreement(labels: NDArray[Any], truth: NDArray[Any]) -> tuple[float, int]:
    """Share of labels that agree with the truth, and the number of pairs where both take a side.

    Args:
        labels: P(first > second), ``[N]``; NaN and 0.5 take no side.
        truth: positive where the first is better, ``[N]``; NaN and 0 take no side.

    Example:
        >>> agreement(np.array([1.0, 0.0, 0.5]), np.array([2.0, 3.0, 4.0]))
        (0.5, 2)
    """
    counted = np.isfinite(labels) & np.isfinite(truth) & (labels != 0.5) & (truth != 0)
    if not counted.any():
        return float("nan"), 0
    return float(np.mean((labels > 0.5)[counted] == (truth > 0)[counted])), int(counted.sum())


def check_margin(margin: float) -> float:
    """The margin, if it leaves any pair to be labelled; else ValueError."""
    if not 0.0 <= margin < 0.5:
        raise ValueError(f"margin must be in [0, 0.5), got {margin}")
    return margin


def _each(function: Callable[[EpisodeRecord | None, Span], Any], *sides: Segments) -> list[list[Any]]:
    """The values of a function for the segments of each side."""
    return [[function(*piece) for piece in zip(side.episodes, side.spans, strict=True)] for side in sides]


def _sigmoid(values: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
