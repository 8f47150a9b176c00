"""How a question is asked: look up the cache, ask, parse, ask again with the reason if parsing failed, count."""

from __future__ import annotations

import json
import math
import os
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vlp_gym.errors import AnswerError
from vlp_gym.prompting.cache import PromptCache, question_key
from vlp_gym.prompting.content import Content, Schema
from vlp_gym.prompting.parse import Unparsed
from vlp_gym.prompting.workers import leave_if_abandoned

Result = TypeVar("Result")

# A longer answer is a model that never stops, not one to parse.
MAX_ANSWER = 100_000  # characters

# A model held to a schema may never end, or write nothing. After so many such answers in a row no more schema is sent.
MOST_UNREAD = 3

COUNTERS = ("requests", "retries", "cached", "unparsed", "prompt_tokens", "completion_tokens")


class AskedChat(ABC):
    """Base of a `Chat`: the answer cache, retries and counters around `_complete` and `_first_token`.

    Args:
        name: the model.
        parameters: JSON values that affect its answers.
        cache: folder of cached answers; "default", or None for no cache.
        attempts: how often a question is asked until its answer can be parsed.
    """

    def __init__(
        self, name: str, parameters: Mapping[str, Any], *, cache: str | os.PathLike[str] | None, attempts: int
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        self.name = name
        self._parameters, self._attempts, self._cache = dict(parameters), attempts, PromptCache(cache)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        # Rows of a batch are often equal; the second waits for the first one's answer. Questions whose keys share the
        # first byte share a lock, so that the number of locks is fixed.
        self._locks = [threading.Lock() for _ in range(256)]
        self._schema_tries = MOST_UNREAD

    def ask(self, content: Content, read: Callable[[str], Result], schema: Schema | None = None) -> Result:
        """See `Chat.ask`. The schema is sent with the first attempt only: the next ones ask for the text."""
        return self._answer(content, read, self._complete, ("text",), schema)

    def logprobs(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """See `Chat.logprobs`."""

        def send(content: Content, schema: None) -> str:
            return json.dumps(self._first_token(content, candidates))

        def read(answer: str) -> list[float]:
            try:
                values = [float(value) for value in json.loads(answer)]
            except (ValueError, TypeError) as error:
                raise Unparsed(f"it is no list of numbers ({error})") from error
            if len(values) != len(candidates) or not all(math.isfinite(value) for value in values):
                raise Unparsed(f"expected {len(candidates)} finite log-probabilities, got {values}")
            return values

        return self._answer(content, read, send, ("logprobs", *candidates))

    def stats(self) -> dict[str, float]:
        """The counters by the names in `COUNTERS`."""
        with self._counting:
            return {name: self._counts[name] for name in COUNTERS}

    @abstractmethod
    def _complete(self, content: Content, schema: Schema | None) -> str:
        """The model's answer, in JSON by the schema if the model can be held to one."""

    @abstractmethod
    def _first_token(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """Log-probabilities of the candidates as the first token."""

    def _count(self, **increments: int) -> None:
        """Add to the counters."""
        with self._counting:
            self._counts.update(increments)

    def _answer(
        self,
        content: Content,
        read: Callable[[str], Result],
        send: Callable[[Content, Any], str],
        kind: Sequence[str],
        schema: Schema | None = None,
    ) -> Result:
        """Return the cached answer, or ask with `send` and cache the answer if `read` can parse it.

        The kind of answer is part of the cache's key.
        """
        key = question_key(self.name, {**self._parameters, "kind": list(kind)}, content)
        with self._locks[int(key[:2], 16)]:
            kept = self._cache.get(key)
            if kept is not None:
                try:
                    value = read(kept)
                except Unparsed:
                    pass  # cached by a version with another parser
                else:
                    self._count(cached=1)
                    return value
            reply, reason = "", ""
            for attempt in range(1, self._attempts + 1):
                # A model at temperature 0 repeats itself unless the question changes.
                again = [] if attempt == 1 else [f"Attempt {attempt}: {reason}. Keep exactly to the format asked for."]
                leave_if_abandoned()
                held_to = schema if attempt == 1 and self._schema_tries > 0 else None
                reply = send([*content, *again], held_to)
                try:
                    if len(reply) > MAX_ANSWER:
                        raise Unparsed(f"it has {len(reply)} characters, at most {MAX_ANSWER} are read")
                    value = read(reply)
                except Unparsed as error:
                    self._count(unparsed=1)
                    self._schema_tries -= held_to is not None
                    reason = f"the answer could not be read, because {error}"
                else:
                    if held_to is not None:
                        self._schema_tries = MOST_UNREAD
                    self._cache.put(key, reply, self.name)
                    return value
        times = "once" if self._attempts == 1 else f"{self._attempts} times"
        raise AnswerError(
            f"{self.name} was asked {times}, and {reason}; it began with {reply[:80]!r}. "
            "Take a model that follows formats better, or give more attempts"
        )
