"""How a question is asked: look up the cache, ask, parse, ask again with the reason if parsing failed, count."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vlp_gym.errors import QueryError
from vlp_gym.prompting.cache import PromptCache, question_key
from vlp_gym.prompting.content import Content
from vlp_gym.prompting.parse import Unparsed
from vlp_gym.prompting.workers import leave_if_abandoned

Result = TypeVar("Result")

COUNTERS = ("requests", "retries", "cached", "unparsed", "prompt_tokens", "completion_tokens")


class Asking:
    """The answer cache, retries and counters of one chat model.

    Args:
        model: its name.
        parameters: JSON values that affect its answers.
        cache: folder of cached answers; "default", or None for no cache.
        attempts: how often a question is asked until its answer can be parsed.
    """

    def __init__(
        self, model: str, parameters: Mapping[str, Any], *, cache: str | os.PathLike[str] | None, attempts: int
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        self.model, self.parameters, self.attempts = model, dict(parameters), attempts
        self.cache = PromptCache(cache)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        # Rows of a batch are often equal; the second waits for the first one's answer. Questions whose keys share the
        # first byte share a lock, so that the number of locks is fixed.
        self._locks = [threading.Lock() for _ in range(256)]

    def answer(
        self,
        content: Content,
        read: Callable[[str], Result],
        send: Callable[[Content], str],
        kind: Sequence[str] = ("text",),
    ) -> Result:
        """Return the cached answer, or ask and cache the answer if it can be parsed.

        Args:
            content: the question.
            read: parses the answer, or raises Unparsed.
            send: asks the model.
            kind: kind of answer, part of the cache key.

        Raises:
            QueryError: no answer can be parsed.
        """
        key = question_key(self.model, {**self.parameters, "kind": list(kind)}, content)
        with self._locks[int(key[:2], 16)]:
            kept = self.cache.get(key)
            if kept is not None:
                try:
                    value = read(kept)
                except Unparsed:
                    pass  # cached by a version with another parser
                else:
                    self.count(cached=1)
                    return value
            reply, reason = "", ""
            for attempt in range(1, self.attempts + 1):
                # A model at temperature 0 repeats itself unless the question changes.
                again = [] if attempt == 1 else [f"Attempt {attempt}: {reason}. Keep exactly to the format asked for."]
                leave_if_abandoned()
                reply = send([*content, *again])
                try:
                    value = read(reply)
                except Unparsed as error:
                    self.count(unparsed=1)
                    reason = f"the answer could not be read, because {error}"
                else:
                    self.cache.put(key, reply, self.model)
                    return value
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        raise QueryError(
            f"{self.model} was asked {times}, and {reason}; it began with {reply[:80]!r}. "
            "Take a model that follows formats better, or give more attempts"
        )

    def logprobs(
        self, content: Content, candidates: Sequence[str], send: Callable[[Content], list[float]]
    ) -> list[float]:
        """Like `answer`, for log-probabilities."""

        def read(answer: str) -> list[float]:
            try:
                values = [float(value) for value in json.loads(answer)]
            except (ValueError, TypeError) as error:
                raise Unparsed(f"it is no list of numbers ({error})") from error
            if len(values) != len(candidates) or not all(math.isfinite(value) for value in values):
                raise Unparsed(f"expected {len(candidates)} finite log-probabilities, got {values}")
            return values

        return self.answer(content, read, lambda content: json.dumps(send(content)), ("logprobs", *candidates))

    def count(self, **increments: int) -> None:
        """Add to the counters."""
        with self._counting:
            self._counts.update(increments)

    def stats(self) -> dict[str, float]:
        """The counters by the names in `COUNTERS`."""
        with self._counting:
            return {name: self._counts[name] for name in COUNTERS}
