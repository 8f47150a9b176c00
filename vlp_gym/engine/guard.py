"""A reward model behind a guard: whatever it does wrong becomes an error that says what and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.models.protocol import ContextualModel, RewardModel, Scores

Result = TypeVar("Result")


class GuardedModel:
    """Calls a `RewardModel` without gradients, in eval mode, in batches that fit, and checks what comes back.

    Every method takes `where`, which names the env, episode and step in the messages.

    Args:
        model: the live model; it is never copied.
        device: "auto" leaves the model where it is; anything else moves it.
        truncate: cut an instruction that is over the model's token limit, instead of raising. It is set, for the
            call only, on those parts of the model that have an attribute of this name.

    Raises (by every method):
        QueryError: if the model raises or runs out of memory at batch 1.
        TypeError: if it returns something of another kind, shape or device than its protocol says, or with gradient.
    """

    def __init__(self, model: RewardModel, *, device: str | torch.device = "auto", truncate: bool = False) -> None:
        self.model = model
        if isinstance(model, nn.Module):
            if device != "auto":
                model.to(device)
            model.eval()
        self.device = next((weight.device for weight in _weights(model)), torch.device("cpu"))
        self.contextual = isinstance(model, ContextualModel)
        self.max_batch = 256
        """Rows in one call of the model; halved, for good, when the memory does not suffice."""
        self._truncate = truncate
        self._parts: list[Any] = list(model.modules()) if isinstance(model, nn.Module) else [model]

    def __deepcopy__(self, memo: dict[int, Any]) -> GuardedModel:
        """Itself: a deep copy of an environment shares the model."""
        return self

    @torch.inference_mode()
    def encode_text(self, instruction: str, *, where: str) -> Tensor:
        """Encode one checked instruction as tokens, ``[L, D]``."""
        with self._truncating():
            text = self._call(where, lambda: self.model.encode_text([instruction]))
        self._check(text, "encode_text", {"B": 1, "L": None, "D": None}, where)
        return text[0]

    @torch.inference_mode()
    def encode_frames(self, frames: Tensor, *, where: str) -> Tensor:
        """Encode frames, uint8 ``[N, H, W, 3]`` on any device, as tokens, ``[N, K, D]``."""

        def encode(frames: Tensor) -> Tensor:
            tokens = self._call(where, lambda: self.model.encode_frames(frames))
            self._check(tokens, "encode_frames", {"N": len(frames), "K": None, "D": None}, where)
            return tokens

        return torch.cat(self._batched(encode, [frames.to(self.device)], where))

    @torch.inference_mode()
    def encode_in_context(self, frames: Tensor, first: Tensor, *, where: str) -> Tensor:
        """Of a `ContextualModel`: frame tokens ``[N, K, D]`` beside those of the first frames, ``[N, K', D']``."""
        model: Any = self.model

        def encode(frames: Tensor, first: Tensor) -> Tensor:
            tokens = self._call(where, lambda: model.encode_in_context(frames, first))
            self._check(tokens, "encode_in_context", {"N": len(frames), "K": None, "D": None}, where)
            return tokens

        return torch.cat(self._batched(encode, [frames, first], where))

    @torch.inference_mode()
    def score(self, frames: Tensor, text: Tensor, mask: Tensor, *, where: str, in_context: bool = False) -> Scores:
        """Score windows: frame tokens ``[B, T, K, D]``, text tokens ``[B, L, D]``, mask ``[B, T]``.

        Args:
            in_context: the frame tokens are those of `encode_in_context`.
        """
        model: Any = self.model
        call = model.score_in_context if in_context else model.score

        def score(frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
            scores = self._call(where, lambda: call(frames, text, mask))
            if not isinstance(scores, Scores):
                raise TypeError(f"expected Scores from score, got {type(scores).__name__} ({where})")
            batch, time = mask.shape
            self._check(scores.preference, "preference", {"B": batch}, where)
            if scores.progress is not None:
                self._check(scores.progress, "progress", {"B": batch, "T": time}, where)
            if scores.relevance is not None:
                self._check(scores.relevance, "relevance", {"B": batch}, where)
            return scores

        parts = self._batched(score, [frames, text, mask], where)
        return Scores(
            torch.cat([part.preference for part in parts]),
            _join([part.progress for part in parts]),
            _join([part.relevance for part in parts]),
        )

    def _call(self, where: str, function: Callable[[], Result]) -> Result:
        if isinstance(self.model, nn.Module) and any(part.training for part in self._parts):
            self.model.eval()  # someone trained it meanwhile, and dropout would make the reward random
        try:
            return function()
        except (InstructionError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise QueryError(f"the reward model raised {type(error).__name__}: {error} ({where})") from error

    def _batched(self, function: Callable[..., Result], rows: Sequence[Tensor], where: str) -> list[Result]:
        """Apply `function` to at most `max_batch` rows at a time, and to half as many when memory runs out."""
        results: list[Result] = []
        start = 0
        while start < len(rows[0]):
            stop = min(start + self.max_batch, len(rows[0]))
            try:
                results.append(function(*(tensor[start:stop] for tensor in rows)))
                start = stop
                continue
            except torch.cuda.OutOfMemoryError as error:
                if stop - start == 1:
                    raise QueryError(f"out of memory at batch 1, {_memory(self.device)} ({where})") from error
                self.max_batch = (stop - start) // 2
            if self.device.type == "cuda":  # not in the except block, whose traceback holds the failed call's tensors
                torch.cuda.empty_cache()
        return results

    def _check(self, tensor: Any, name: str, shape: dict[str, int | None], where: str) -> None:
        got = type(tensor).__name__
        if isinstance(tensor, Tensor):
            sizes = list(shape.values())
            fits = len(sizes) == tensor.ndim and all(
                want in (None, size) for want, size in zip(sizes, tensor.shape, strict=True)
            )
            if fits and tensor.is_floating_point() and tensor.device == self.device and not tensor.requires_grad:
                return
            grad = " with gradient" if tensor.requires_grad else ""
            got = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{grad}"
        words = ", ".join(letter if size is None else str(size) for letter, size in shape.items())
        raise TypeError(f"expected float [{words}] on {self.device} without gradient from {name}, got {got} ({where})")

    @contextmanager
    def _truncating(self) -> Iterator[None]:
        changed = [part for part in self._parts if self._truncate and getattr(part, "truncate", None) is False]
        for part in changed:
            part.truncate = True
        try:
            yield
        finally:
            for part in changed:
                part.truncate = False


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _weights(model: RewardModel) -> Iterator[Tensor]:
    if isinstance(model, nn.Module):
        yield from model.parameters()
        yield from model.buffers()


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return f"on {device}"
    free, total = torch.cuda.mem_get_info(device)
    return f"{free >> 20} of {total >> 20} MiB free on {device}"
