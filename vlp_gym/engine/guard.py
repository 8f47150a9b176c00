"""The one guarded way to ask a reward model: whatever it does wrong becomes an error that says what and where.

Wrappers, labelers, evaluation, calibration and tuning all ask through `GuardedModel`; nothing else calls a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from operator import attrgetter
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.models.ambient import float_dtypes, usual_torch
from vlp_gym.models.protocol import (
    AnchoredModel,
    ContextualModel,
    GoalModel,
    KnowingModel,
    PairwiseModel,
    RewardModel,
    Scores,
    Truncating,
)
from vlp_gym.models.registry import place_model

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_training = attrgetter("training")


def _asking(
    method: Callable[Concatenate[GuardedModel, Arguments], Result],
) -> Callable[Concatenate[GuardedModel, Arguments], Result]:
    """A method that uses the model: without gradients, in eval mode, and with PyTorch as models expect it."""

    @wraps(method)
    def ask(self: GuardedModel, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.inference_mode(), usual_torch(self.model):
            if any(map(_training, self._modules)):  # somebody may have trained it, and dropout would be random rewards
                self._modules[0].eval()
            return method(self, *args, **kwargs)

    return ask


class GuardedModel:
    """Calls a `RewardModel` without gradients, in eval mode, in batches that fit, and checks what comes back.

    What the process has set in PyTorch (default dtype and device, autocast) does not reach the model.

    Every method takes `where`, which names the env, episode and step, or the video, in the messages.

    Args:
        model: a live model, which is never copied, or a name, folder or hub id for `load_reward_model`.
        device: where the model runs; "auto" leaves a live model where it is, and puts a named one on CUDA if there is
            one.
        truncate: cut an instruction that is over the model's token limit, instead of raising. It is set, for the
            call only, on those parts of the model that have an attribute of this name.

    Raises (by every method):
        QueryError: if the model raises, runs out of memory at batch 1, or answers NaN or inf.
        TypeError: if it returns something of another kind, shape or device than its protocol says, or with gradient.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel,
        *,
        device: str | torch.device = "auto",
        truncate: bool = False,
    ) -> None:
        self.model: RewardModel = place_model(model, device)
        self.device = next((weight.device for weight in _weights(self.model)), torch.device("cpu"))
        self.contextual = isinstance(self.model, ContextualModel)
        self.pairwise = isinstance(self.model, PairwiseModel)
        self.knowing = isinstance(self.model, KnowingModel)
        self.anchored = isinstance(self.model, AnchoredModel) and self.model.anchored
        self.max_batch = 256
        """Rows in one call of the model; halved, for good, when the memory does not suffice."""
        parts: list[Any] = list(self.model.modules()) if isinstance(self.model, nn.Module) else [self.model]
        self._modules = [part for part in parts if isinstance(part, nn.Module)]
        self._truncating_parts = [part for part in parts if truncate and isinstance(part, Truncating)]
        if self._modules:
            self._modules[0].eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedModel:
        """Itself: a deep copy of an environment shares the model."""
        return self

    @_asking
    def encode_text(self, instructions: Sequence[str], *, where: object) -> Tensor:
        """Encode B checked instructions as tokens, ``[B, L, D]``."""
        with self._truncating():
            text = self._call(where, self.model.encode_text, instructions)
        return self._check(text, "encode_text", (len(instructions), None, None), "BLD", where)

    @_asking
    def encode_goals(self, frames: Tensor, *, where: object) -> Tensor:
        """Encode N pictures of goals, uint8 ``[N, H, W, 3]``, as text tokens, ``[N, L, D]``; of a `GoalModel`."""
        assert isinstance(self.model, GoalModel)
        text = self._call(where, self.model.encode_goals, frames.to(self.device))
        return self._check(text, "encode_goals", (len(frames), None, None), "NLD", where)

    @_asking
    def encode_frames(self, frames: Tensor, *, where: object) -> Tensor:
        """Encode frames, uint8 ``[N, H, W, 3]`` on any device, as tokens, ``[N, K, D]``."""

        def encode(frames: Tensor) -> Tensor:
            tokens = self._call(where, self.model.encode_frames, frames.to(self.device))
            return self._check(tokens, "encode_frames", (len(frames), None, None), "NKD", where)

        return _cat(self._batched(encode, [frames], where))

    @_asking
    def encode_in_context(self, frames: Tensor, first: Tensor, *, where: object) -> Tensor:
        """Frame tokens ``[N, K, D]`` beside those of the first frames, as ``[N, K', D']``; of a `ContextualModel`."""
        model: Any = self.model

        def encode(frames: Tensor, first: Tensor) -> Tensor:
            tokens = self._call(where, model.encode_in_context, frames, first)
            return self._check(tokens, "encode_in_context", (len(frames), None, None), "NKD", where)

        return _cat(self._batched(encode, [frames, first], where))

    @_asking
    def score(
        self,
        frames: Tensor,
        text: Tensor,
        mask: Tensor,
        *,
        where: object,
        in_context: bool = False,
        finite: bool = True,
    ) -> Scores:
        """Score windows: frame tokens ``[B, T, K, D]``, text tokens ``[B, L, D]``, mask ``[B, T]``.

        Args:
            frames: as `RewardModel.score` takes them.
            text: the same.
            mask: the same.
            where: see the class.
            in_context: the frame tokens are those of `encode_in_context`.
            finite: refuse NaN and inf, in progress where the frame is real; False leaves that to the caller.
        """
        model: Any = self.model
        call = model.score_in_context if in_context else model.score

        def score(frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
            scores = self._call(where, call, frames, text, mask)
            if not isinstance(scores, Scores):
                raise TypeError(f"expected Scores from score, got {type(scores).__name__} ({where})")
            self._check(scores.preference, "preference", mask.shape[:1], "B", where)
            if scores.progress is not None:
                self._check(scores.progress, "progress", mask.shape, "BT", where)
            if scores.relevance is not None:
                self._check(scores.relevance, "relevance", mask.shape[:1], "B", where)
            return scores

        parts = self._batched(score, [frames, text, mask], where)
        scores = parts[0] if len(parts) == 1 else _joined(parts)
        if finite:
            progress = None if scores.progress is None else scores.progress[mask]
            for name, values in zip(HEADS, (scores.preference, progress, scores.relevance), strict=True):
                check_finite(values, name, where)
        return scores

    @_asking
    def prefer(self, a: Tensor, b: Tensor, text: Tensor, *, where: object) -> Tensor:
        """P(a > b | text), ``[B]``: the head of a `PairwiseModel`, else Bradley-Terry on the preferences (VLP eq. 3).

        Args:
            a: as `PairwiseModel.prefer` takes it; every frame is real.
            b: the same.
            text: the same.
            where: see the class.
        """
        if not self.pairwise:
            whole = [torch.ones(side.shape[:2], dtype=torch.bool, device=self.device) for side in (a, b)]
            f, g = (self.score(side, text, mask, where=where) for side, mask in zip((a, b), whole, strict=True))
            return torch.sigmoid(f.preference - g.preference)
        model: Any = self.model

        def prefer(a: Tensor, b: Tensor, text: Tensor) -> Tensor:
            chance = self._call(where, model.prefer, a, b, text)
            return self._check(chance, "prefer", (len(text),), "B", where)

        chances = _cat(self._batched(prefer, [a, b, text], where))
        check_finite(chances, "P(a > b)", where)
        return chances

    def prefer_in_both_orders(self, a: Tensor, b: Tensor, text: Tensor, *, where: object) -> Tensor:
        """(P(a > b) + 1 - P(b > a)) / 2, ``[B]``: symmetric even where the head is not; arguments as in `prefer`."""
        return (self.prefer(a, b, text, where=where) + 1.0 - self.prefer(b, a, text, where=where)) / 2

    @_asking
    def novelty(self, frames: Tensor, *, where: object) -> Tensor:
        """How far N frames, tokens ``[N, K, D]``, are from the training data, ``[N]``; of a `KnowingModel`."""
        assert isinstance(self.model, KnowingModel)
        return self._check(self._call(where, self.model.novelty, frames), "novelty", (len(frames),), "N", where)

    @_asking
    def probe(self, text: Tensor) -> Scores:
        """Score one black frame under text tokens ``[L, D]``."""
        where = "first call, on a black frame"
        tokens = self.encode_frames(torch.zeros((1, *self.model.frame_size, 3), dtype=torch.uint8), where=where)
        mask = torch.ones((1, 1), dtype=torch.bool, device=self.device)
        return self.score(tokens[:, None], text[None], mask, where=where)

    def _call(self, where: object, function: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return function(*arguments)
        except (InstructionError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            others = float_dtypes(self.model) - {torch.float32} if isinstance(error, RuntimeError) else ()
            cure = f"; its weights are {', '.join(sorted(map(str, others)))}, model.float() may help" if others else ""
            raise QueryError(f"the reward model raised {type(error).__name__}: {error} ({where}){cure}") from error

    def _batched(self, function: Callable[..., Result], rows: Sequence[Tensor], where: object) -> list[Result]:
        """Apply `function` to at most `max_batch` rows at a time, and to half as many when memory runs out."""
        results: list[Result] = []
        start, count = 0, rows[0].shape[0]
        while start < count:
            stop = min(start + self.max_batch, count)
            try:
                results.append(function(*(rows if stop - start == count else [part[start:stop] for part in rows])))
                start = stop
                continue
            except torch.cuda.OutOfMemoryError as error:
                if stop - start == 1:
                    raise QueryError(f"out of memory at batch 1, {_memory(self.device)} ({where})") from error
                self.max_batch = (stop - start) // 2
            if self.device.type == "cuda":  # not in the except block, whose traceback holds the failed call's tensors
                torch.cuda.empty_cache()
        return results

    def _check(self, tensor: Any, name: str, shape: Sequence[int | None], letters: str, where: object) -> Tensor:
        """The same tensor, if it is what the protocol says.

        Args:
            tensor: what the model gave.
            name: what it is.
            shape: the size of each dimension; None takes any.
            letters: their names.
            where: see the class.
        """
        got = type(tensor).__name__
        if isinstance(tensor, Tensor):
            sizes = tensor.shape
            fits = len(sizes) == len(shape)
            for want, size in zip(shape, sizes, strict=False):
                fits = fits and (want is None or want == size)
            if fits and tensor.dtype.is_floating_point and tensor.device == self.device and not tensor.requires_grad:
                return tensor
            grad = " with gradient" if tensor.requires_grad else ""
            got = f"{tensor.dtype} {list(sizes)} on {tensor.device}{grad}"
        words = ", ".join(letter if size is None else str(size) for letter, size in zip(letters, shape, strict=True))
        raise TypeError(f"expected float [{words}] on {self.device} without gradient from {name}, got {got} ({where})")

    @contextmanager
    def _truncating(self) -> Iterator[None]:
        changed = [part for part in self._truncating_parts if part.truncate is False]
        for part in changed:
            part.truncate = True
        try:
            yield
        finally:
            for part in changed:
                part.truncate = False


HEADS = ("preference", "progress", "relevance")


def check_finite(values: Tensor | None, name: str, where: object) -> None:
    """Raise QueryError if one of these numbers is NaN or inf; None has no numbers."""
    if values is None or torch.isfinite(values).all():
        return
    raise not_finite(name, values[~torch.isfinite(values)].flatten()[0].item(), where)


def not_finite(name: str, value: float, where: object) -> QueryError:
    """The error for a number of a model that is NaN or inf."""
    return QueryError(f"the reward model gave the {name} {value}, which no reward may have ({where})")


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _joined(parts: Sequence[Scores]) -> Scores:
    progress, relevance = (_join([getattr(part, name) for part in parts]) for name in ("progress", "relevance"))
    return Scores(torch.cat([part.preference for part in parts]), progress, relevance)


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return _cat(present) if present else None


def _weights(model: RewardModel) -> Iterator[Tensor]:
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return f"on {device}"
    free, total = torch.cuda.mem_get_info(device)
    return f"{free >> 20} of {total >> 20} MiB free on {device}"
