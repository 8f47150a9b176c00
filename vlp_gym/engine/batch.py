"""One batch of frames in, one answer for each ticket out: the scoring that both modes share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.guard import HEADS, GuardedModel, not_finite
from vlp_gym.engine.tickets import UNSCORED, Answer, FrameScore, Request
from vlp_gym.engine.token_cache import TokenCache
from vlp_gym.engine.windows import window_indices
from vlp_gym.models.ambient import usual_torch
from vlp_gym.models.protocol import History, Scores


class _Queries:
    """Names a batch in an error message; a string that is made only when it is needed."""

    def __init__(self, batch: Sequence[Request]) -> None:
        self.batch = batch

    def __str__(self) -> str:
        first = self.batch[0].ticket
        return str(first) if len(self.batch) == 1 else f"{len(self.batch)} queries, the first: {first}"


@usual_torch()
def answer_batch(
    model: GuardedModel, batch: Sequence[Request], window: int, history: History
) -> tuple[list[Answer], Tensor]:
    """Score a batch of C views each; one environment may appear several times, in the order of its steps.

    Returns:
        One answer for each request, and the frame tokens, ``[B, C, K, D]``.

    Raises:
        QueryError: if the model raises or runs out of memory at batch 1.
        TypeError: if it returns something of another kind or shape than its protocol says.
    """
    where = _Queries(batch)
    views = len(batch[0].frames)
    pixels = batch[0].frames if len(batch) == 1 else np.concatenate([request.frames for request in batch])
    encoded = model.encode_frames(torch.from_numpy(pixels), where=where)
    frame_tokens = encoded.reshape(len(batch), views, *encoded.shape[1:])
    caches = _caches(batch, views, window if history == "sliding" else None)
    # With "prefix", every window begins with the first frame of the episode.
    in_context = history == "prefix" and window > 1 and model.contextual
    if in_context:
        for cache, tokens in zip(caches, encoded, strict=True):
            cache.first = tokens.clone() if cache.first is None else cache.first
        first = torch.stack([cache.first for cache in caches if cache.first is not None])
        encoded = model.encode_in_context(encoded, first, where=where)
    windows: list[Tensor] = []
    masks: list[NDArray[np.bool_]] = []
    texts: list[Tensor] = []
    for number, cache in enumerate(caches):
        cache.append(encoded[number])
        if batch[number // views].scored:
            indices, real = window_indices(cache.total, window, history)
            windows.append(cache.take(indices))
            masks.append(real)
            texts.append(batch[number // views].episode.text)
    rows: list[FrameScore] = []
    if windows:
        text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)  # a copy; padding is zeros, as the models' own
        mask = torch.from_numpy(np.array(masks)).to(model.device)
        scores = model.score(torch.stack(windows), text, mask, where=where, in_context=in_context, finite=False)
        rows = split_rows(scores)
    return _answers(batch, views, rows), frame_tokens


def _caches(batch: Sequence[Request], views: int, limit: int | None) -> list[TokenCache]:
    """The token caches of the frames of a batch, in their order."""
    caches: list[TokenCache] = []
    for request in batch:
        own = request.episode.caches
        while len(own) < views:
            own.append(TokenCache(limit))
        caches += own
    return caches


def _answers(batch: Sequence[Request], views: int, rows: Sequence[FrameScore]) -> list[Answer]:
    """One answer for each request, from the scores of the views of those that asked for one."""
    answers, taken = [], 0
    for request in batch:
        if not request.scored:
            answers.append(Answer(request.ticket, UNSCORED))
            continue
        own = rows[taken : taken + views]
        taken += views
        score = own[0] if views == 1 else mean_score(own)
        answers.append(check_score(request, score))
    return answers


def check_score(request: Request, score: FrameScore) -> Answer:
    """The answer with this score, or with the error that one of its numbers is NaN or inf."""
    for name, value in zip(HEADS, score, strict=True):
        if value is not None and not math.isfinite(value):
            return Answer(request.ticket, None, not_finite(name, value, request.ticket))
    return Answer(request.ticket, score)


def split_rows(scores: Scores) -> list[FrameScore]:
    """A batch as plain floats; the progress is that of the last frame."""
    preference = scores.preference.tolist()
    nothing = [None] * len(preference)
    progress = nothing if scores.progress is None else scores.progress[:, -1].tolist()
    relevance = nothing if scores.relevance is None else scores.relevance.tolist()
    return [FrameScore(*row) for row in zip(preference, progress, relevance, strict=True)]


def mean_score(views: Sequence[FrameScore]) -> FrameScore:
    """The mean over the cameras of one moment, which count alike."""

    def mean(values: list[float | None]) -> float | None:
        present = [value for value in values if value is not None]
        return sum(present) / len(present) if present else None

    preference = sum(view.preference for view in views) / len(views)
    return FrameScore(preference, mean([view.progress for view in views]), mean([view.relevance for view in views]))
