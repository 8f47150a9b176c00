"""Client for a chat model at an OpenAI-compatible endpoint: vLLM, SGLang, a hosted one."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from vlp_gym.errors import QueryError, import_extra
from vlp_gym.prompting.asking import AskedChat
from vlp_gym.prompting.cache import DEFAULT
from vlp_gym.prompting.content import Content, Image, Schema, png_bytes
from vlp_gym.prompting.failures import Failure, NoCompletion, RequestRefused, diagnose, masked
from vlp_gym.prompting.workers import leave_if_abandoned, pause

Result = TypeVar("Result")

TOP_LOGPROBS = 20  # the protocol's maximum
# Raised for a body that is not JSON or not a completion; RecursionError if it is nested too deeply.
NO_JSON = (ValueError, RecursionError)
BACKOFF_CAP_S = 8.0
RETRY_AFTER_CAP_S = 60.0
IN_JSON = "Write the answer as JSON that fits the schema of this request."
MOST_TOKENS = 10**9  # per request; larger counts are ignored as nonsense


class ChatClient(AskedChat):
    """Chat through the `openai` package; the API key comes from OPENAI_API_KEY and is never written or shown.

    Requests are retried if they time out, are refused temporarily (408, 409, 429), fail in the server (5xx) or return
    something other than a chat completion. The pause is the server's Retry-After, else exponential: `backoff_s`,
    doubled each time, at most 8 s, minus a random part of up to a quarter.

    A question with a schema is sent with ``response_format``, which vLLM, SGLang and hosted models decode by. An
    endpoint that refuses that field is asked without it, and from then on always. Equal parts of a question are sent as
    equal bytes, and what questions share comes first, so that the caches of servers (prefixes, pictures) serve them.

    Args:
        model: the endpoint's name for the model.
        base_url: address of the endpoint, usually ending in "/v1"; None takes OPENAI_BASE_URL, else OpenAI's.
        cache: folder of cached answers; "default" is ``~/.cache/vlp_gym/prompts`` (or ``prompts`` in VLP_GYM_CACHE),
            None disables the cache.
        attempts: how often a question is asked until its answer can be parsed.
        temperature: 0 is as deterministic as the endpoint allows; None omits it, as some models require.
        max_tokens: largest number of tokens per answer; None leaves it to the endpoint.
        timeout_s: time limit of one whole request, from connecting to the last byte of its answer, in seconds.
        max_retries: how often a failed request is repeated.
        deadline_s: time limit of a request with all its repetitions and the pauses between them, in seconds; waiting
            for `requests_per_minute` does not count.
        backoff_s: pause before the first retry, in seconds.
        requests_per_minute: rate limit; requests start at least 60 / this seconds apart. None means no limit.
        prompt_price: dollars per million tokens sent; with a price `stats` has "dollars".
        completion_price: dollars per million tokens received.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        ValueError: neither a key nor an address is given, or an argument is out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        cache: str | os.PathLike[str] | None = DEFAULT,
        attempts: int = 3,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        deadline_s: float = 300.0,
        backoff_s: float = 0.5,
        requests_per_minute: float | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
    ) -> None:
        _require("timeout_s", timeout_s, above=0)
        _require("deadline_s", deadline_s, above=0)
        _require("requests_per_minute", requests_per_minute, above=0)
        for name, value, least in (
            ("temperature", temperature, 0),
            ("max_tokens", max_tokens, 1),
            ("max_retries", max_retries, 0),
            ("backoff_s", backoff_s, 0),
            ("prompt_price", prompt_price, 0),
            ("completion_price", completion_price, 0),
        ):
            _require(name, value, least=least)
        self.timeout_s, self.max_retries, self.deadline_s, self.backoff_s = (
            timeout_s,
            max_retries,
            deadline_s,
            backoff_s,
        )
        options = {"temperature": temperature, "max_tokens": max_tokens}
        self._options = {name: value for name, value in options.items() if value is not None}
        super().__init__(model, self._options, cache=cache, attempts=attempts)
        self._limit = RateLimit(requests_per_minute)
        self._prices = {"prompt_tokens": prompt_price, "completion_tokens": completion_price}
        self._random = random.Random()  # not the global generator: a retry must not change the agent's draws
        self._given_url, self._key = base_url, _key(base_url)
        self._clients: dict[int, Any] = {}
        self._takes_schemas = True
        self.base_url = str(self._client.base_url).rstrip("/")

    def stats(self) -> dict[str, float]:
        """Counters "requests", "retries" among them, "cached" and "unparsed" answers, tokens; "dollars" with prices."""
        counts = super().stats()
        if any(self._prices.values()):
            counts["dollars"] = sum(price * counts[name] for name, price in self._prices.items()) / 1e6
        return counts

    def close(self) -> None:
        """Close the connections."""
        from vlp_gym.prompting.bounded import run

        run(self._client.close())

    @property
    def _client(self) -> Any:
        """The connections of this process: a forked child must not read its parent's answers."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = self._open(process)
        return self._clients[process]

    def _open(self, process: int) -> Any:
        import openai

        from vlp_gym.prompting.bounded import BoundedClient, let_go

        http = BoundedClient(timeout=None, headers={"Accept-Encoding": "gzip"})
        weakref.finalize(self, let_go, process, http).atexit = False
        # `_request` retries and ends requests, so that every one is counted and rate-limited.
        return openai.AsyncOpenAI(
            api_key=self._key, base_url=self._given_url, timeout=None, max_retries=0, http_client=http
        )

    def _complete(self, content: Content, schema: Schema | None) -> str:
        if schema is None or not self._takes_schemas:
            return self._request(content, self._options, _text)
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        with suppress(RequestRefused):
            return self._request([*content, IN_JSON], {**self._options, "response_format": form}, _text)
        answer = self._request(content, self._options, _text)
        self._takes_schemas = False  # only now: it was not the question that was refused
        return answer

    def _first_token(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """From the 20 most likely first tokens, the protocol's maximum.

        Tokens that differ from a candidate only in white space count for it. A candidate that is not among the 20 gets
        an upper bound: the smallest of their probabilities, or the mass they leave if that is less.
        """
        options = {**self._options, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        top = self._request(content, options, _top_logprobs)
        if not top:
            raise QueryError(
                f"{self.base_url} gives no log-probabilities of {self.name!r}; take an endpoint that has top_logprobs, "
                "such as vLLM"
            )
        return [candidate_logprob(top, candidate) for candidate in candidates]

    def _request(self, content: Content, options: dict[str, Any], read: Callable[[Any], Result]) -> Result:
        """Request a chat completion and `read` its first choice; `read` raises NoCompletion if it is malformed."""
        import openai

        from vlp_gym.prompting.bounded import Refused, run

        messages = [{"role": "user", "content": [_part(part) for part in content]}]
        left_s = self.deadline_s
        create = self._client.chat.completions.create  # before a turn is taken: the first time, this imports
        for attempt in range(self.max_retries + 1):
            self._limit.wait()
            leave_if_abandoned()
            self._count(requests=1, retries=int(attempt > 0))
            started, limit_s = time.monotonic(), min(self.timeout_s, left_s)
            try:
                completion = run(create(model=self.name, messages=messages, **options), limit_s)
                self._count_tokens(completion)
                return read(_first_choice(completion))
            except (openai.OpenAIError, Refused, asyncio.TimeoutError, *NO_JSON) as error:
                failure = diagnose(error, self.name, limit_s, self._key)
            left_s -= time.monotonic() - started
            wait_s = self._wait_s(attempt, failure.retry_after_s)
            over = attempt == self.max_retries or wait_s > min(RETRY_AFTER_CAP_S, left_s)
            if over or not failure.passing:
                # Outside the except block: the traceback must not show openai's exception, which may quote the key.
                raise failure.error(self._describe(failure, attempt + 1))
            pause(wait_s)
            left_s -= wait_s
        raise AssertionError("unreachable")

    def _count_tokens(self, completion: Any) -> None:
        usage = getattr(completion, "usage", None)
        counts = {name: getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")}
        self._count(**{name: n for name, n in counts.items() if type(n) is int and 0 <= n <= MOST_TOKENS})

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return min(self.backoff_s * 2.0**attempt, BACKOFF_CAP_S) * (1.0 - 0.25 * self._random.random())

    def _describe(self, failure: Failure, requests: int) -> str:
        times = "" if requests == 1 else f", {requests} times"
        return masked(f"{self.base_url} {failure.what}{times}; {failure.advice}", self._key)


class RateLimit:
    """Space calls of all threads at least 60 / `per_minute` seconds apart.

    Args:
        per_minute: finite and greater than 0; None means no limit.
        clock: monotonic time in seconds.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        self._interval_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Reserve the next time slot and sleep until then."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval_s
        if turn > now:
            self._sleep(turn - now)


def candidate_logprob(top: Sequence[tuple[str, float]], candidate: str) -> float:
    """Log-probability of a candidate from the most likely tokens, or an upper bound of it.

    >>> candidate_logprob([("True", math.log(0.5)), (" True", math.log(0.25))], "True") == math.log(0.75)
    True

    Args:
        top: tokens and their log-probabilities, at least one.
        candidate: one word; white space around tokens is ignored.
    """
    mass = math.fsum(math.exp(logprob) for _, logprob in top)
    matching = [logprob for token, logprob in top if token.strip() == candidate]
    if matching:
        greatest = max(matching)
        return min(greatest + math.log(math.fsum(math.exp(value - greatest) for value in matching)), 0.0)
    least = min(logprob for _, logprob in top)
    return min(least, math.log1p(-mass)) if mass < 1.0 else min(least, 0.0)


def _first_choice(completion: Any) -> Any:
    """The first choice, checked: the `openai` package passes on any JSON that the server sent."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise NoCompletion(f"got {type(completion).__name__} without choices")
    message = getattr(choices[0], "message", None)
    if not hasattr(message, "content"):
        raise NoCompletion(f"got a choice with {'no message' if message is None else repr(type(message).__name__)}")
    return choices[0]


def _text(choice: Any) -> str:
    """The answer's text; empty if it has no content, as for refused or filtered answers."""
    text = choice.message.content
    if text is not None and not isinstance(text, str):
        raise NoCompletion(f"got a message whose content is {type(text).__name__}, not text")
    return text or ""


def _top_logprobs(choice: Any) -> list[tuple[str, float]]:
    """The most likely first tokens and their log-probabilities; empty if the endpoint gives none."""
    first = getattr(getattr(choice, "logprobs", None), "content", None)
    listed = getattr(first[0], "top_logprobs", None) if isinstance(first, list) and first else None
    if not isinstance(listed, list):
        return []
    top: list[tuple[str, float]] = []
    for entry in listed:
        token, logprob = getattr(entry, "token", None), getattr(entry, "logprob", None)
        # Rounding may exceed 0 slightly; some servers give the lowest finite number for probability 0.
        if not (isinstance(token, str) and isinstance(logprob, (int, float)) and -1e308 <= logprob <= 1e-3):
            raise NoCompletion(f"got the token {str(token)[:20]!r} with the log-probability {str(logprob)[:20]}")
        top.append((token, float(logprob)))
    return top


def _require(name: str, value: float | None, *, least: float | None = None, above: float | None = None) -> None:
    """Raise ValueError unless a number is finite and in its range, or None."""
    if value is None:
        return
    fits = math.isfinite(value) and (least is None or value >= least) and (above is None or value > above)
    if not fits:
        wanted = f"at least {least:g}" if above is None else f"greater than {above:g}"
        raise ValueError(f"{name} must be finite and {wanted}, got {value}")


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = "data:image/png;base64," + base64.b64encode(png_bytes(part)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def _key(base_url: str | None) -> str:
    import_extra("openai", "a chat endpoint needs the package openai", "prompt")
    key = os.environ.get("OPENAI_API_KEY", "").strip()  # a key read from a file may end in a line break
    if not (key.isascii() and key.isprintable()):
        raise ValueError("OPENAI_API_KEY holds characters that no header may have; set it again")
    if not key and not (base_url or os.environ.get("OPENAI_BASE_URL")):
        raise ValueError(
            "no chat endpoint is known: set OPENAI_API_KEY for OpenAI's, or OPENAI_BASE_URL (or base_url=...) for "
            "another one"
        )
    return key or "none"  # a private server needs none, but the package does
