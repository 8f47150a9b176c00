"""One batch of frames in, one answer for each ticket out: the scoring that both modes share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.tickets import UNSCORED, Answer, FrameScore, Request
from vlp_gym.engine.token_cache import TokenCache
from vlp_gym.engine.windows import window_indices
from vlp_gym.errors import QueryError
from vlp_gym.models.protocol import History, Scores


@torch.inference_mode()
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
    where = str(batch[0].ticket) if len(batch) == 1 else f"{len(batch)} queries, the first: {batch[0].ticket}"
    encoded = model.encode_frames(torch.from_numpy(np.concatenate([request.frames for request in batch])), where=where)
    views = len(batch[0].frames)
    caches = []
    for request in batch:
        while len(request.episode.caches) < views:
            request.episode.caches.append(TokenCache(window if history == "sliding" else None))
        caches += request.episode.caches
    frame_tokens = encoded.unflatten(0, (len(batch), views))
    # With "prefix", every window begins with the first frame of the episode.
    in_context = history == "prefix" and window > 1 and model.contextual
    if in_context:
        for cache, tokens in zip(caches, encoded, strict=True):
            cache.first = tokens.clone() if cache.first is None else cache.first
        first = torch.stack([cache.first for cache in caches if cache.first is not None])
        encoded = model.encode_in_context(encoded, first, where=where)
    windows: list[Tensor] = []
    masks: list[NDArray[np.bool_]] = []
    texts = []
    for number, (cache, tokens) in enumerate(zip(caches, encoded, strict=True)):
        cache.append(tokens)
        if not batch[number // views].scored:
            continue
        indices, real = window_indices(cache.total, window, history)
        windows.append(cache.take(indices))
        masks.append(real)
        texts.append(batch[number // views].episode.text)
    rows: Iterator[FrameScore] = iter(())
    if windows:
        text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)  # a copy; padding is zeros, as the models' own
        mask = torch.from_numpy(np.stack(masks)).to(model.device)
        rows = iter(split_rows(model.score(torch.stack(windows), text, mask, where=where, in_context=in_context)))
    answers = []
    for request in batch:
        if not request.scored:
            answers.append(Answer(request.ticket, UNSCORED))
            continue
        own = [next(rows) for _ in range(views)]
        try:
            score = check_finite(_mean(own), where=str(request.ticket))
        except QueryError as error:
            answers.append(Answer(request.ticket, None, error))
        else:
            answers.append(Answer(request.ticket, score))
    return answers, frame_tokens


def split_rows(scores: Scores) -> list[FrameScore]:
    """A batch as plain floats; the progress is that of the last frame."""
    progress = None if scores.progress is None else scores.progress[:, -1]
    heads = (scores.preference, progress, scores.relevance)
    lists = [[None] * len(scores.preference) if values is None else values.tolist() for values in heads]
    return [FrameScore(*row) for row in zip(*lists, strict=True)]


def check_finite(score: FrameScore, *, where: str) -> FrameScore:
    """The same score; QueryError if one of its numbers is NaN or inf."""
    for name in ("preference", "progress", "relevance"):
        value = getattr(score, name)
        if value is not None and not math.isfinite(value):
            raise QueryError(f"the reward model gave the {name} {value}, which no reward may have ({where})")
    return score


def _mean(views: Sequence[FrameScore]) -> FrameScore:
    """Several cameras count alike."""
    if len(views) == 1:
        return views[0]

    def mean(values: list[float | None]) -> float | None:
        present = [value for value in values if value is not None]
        return sum(present) / len(present) if present else None

    preference = sum(view.preference for view in views) / len(views)
    return FrameScore(preference, mean([view.progress for view in views]), mean([view.relevance for view in views]))
