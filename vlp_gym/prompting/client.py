"""A chat model at an OpenAI-compatible endpoint: vLLM, SGLang, a hosted one."""

from __future__ import annotations

import base64
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vlp_gym.errors import MissingExtraError, QueryError
from vlp_gym.prompting.asking import Asking
from vlp_gym.prompting.cache import DEFAULT
from vlp_gym.prompting.content import Content, Image, png_bytes
from vlp_gym.prompting.failures import Failure, NoCompletion, diagnose, masked
from vlp_gym.prompting.workers import leave_if_abandoned, pause

Result = TypeVar("Result")

TOP_LOGPROBS = 20  # the most that the protocol gives
# Of a body that is no JSON or no completion, which openai lets through as it is; the last if it is nested too deeply.
NO_JSON = (ValueError, RecursionError)
BACKOFF_CAP_S = 8.0
RETRY_AFTER_CAP_S = 60.0
MOST_TOKENS = 10**9  # of one request; what says more counts nothing


class ChatClient:
    """Asks through the `openai` package; the key comes from OPENAI_API_KEY, and is neither written nor shown.

    Requests that time out, are refused for now (408, 409, 429), fail in the server (5xx) or are answered by something
    else than a chat completion are sent again: after what the server's Retry-After says, else after `backoff_s`,
    twice that, four times that, up to 8 s, less up to a quarter at random.

    Args:
        model: as the endpoint calls it.
        base_url: address of the endpoint, usually with "/v1" at the end; None takes OPENAI_BASE_URL, else OpenAI's.
        cache: folder of the answers; "default" is ``~/.cache/vlp_gym/prompts`` (or ``prompts`` in VLP_GYM_CACHE), and
            None keeps none.
        attempts: how often a question is asked until its answer can be read.
        temperature: 0 is as deterministic as the endpoint is; None leaves it out, as some models demand.
        max_tokens: of an answer, at most; None leaves it to the endpoint.
        timeout_s: how long one request may take, in seconds.
        max_retries: how often a request that failed is sent again.
        backoff_s: pause before the first of them, in seconds.
        requests_per_minute: requests start at least 60 / this seconds apart; None has no limit.
        prompt_price: dollars per million tokens sent; with it `stats` has "dollars".
        completion_price: dollars per million tokens received.

    Raises:
        MissingExtraError: if the `openai` package is not installed.
        ValueError: if there is no key and no address of one's own, or an argument is out of range.
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
        backoff_s: float = 0.5,
        requests_per_minute: float | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
    ) -> None:
        _require("timeout_s", timeout_s, above=0)
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
        self.name = model
        self.timeout_s, self.max_retries, self.backoff_s = timeout_s, max_retries, backoff_s
        self._options = {
            name: value
            for name, value in (("temperature", temperature), ("max_tokens", max_tokens))
            if value is not None
        }
        self._asking = Asking(model, self._options, cache=cache, attempts=attempts)
        self._limit = RateLimit(requests_per_minute)
        self._prices = {"prompt_tokens": prompt_price, "completion_tokens": completion_price}
        self._random = random.Random()  # of its own: a retry must not change what an agent draws next
        self._client = _open(base_url, timeout_s)
        self.base_url = str(self._client.base_url).rstrip("/")

    def ask(self, content: Content, read: Callable[[str], Result]) -> Result:
        """As `Chat.ask`."""
        return self._asking.answer(content, read, self._complete)

    def logprobs(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """As `Chat.logprobs`, from the most likely first tokens, of which the protocol gives 20.

        Tokens that differ from a candidate by white space alone count with it. The probability of a candidate that is
        not among them is at most the least of theirs and at most what they leave; that bound is given for it.
        """
        return self._asking.logprobs(content, candidates, lambda content: self._first_token(content, candidates))

    def stats(self) -> dict[str, float]:
        """Counters: "requests" sent, "retries" among them, "cached" answers, "unparsed" ones, tokens; "dollars"."""
        counts = self._asking.stats()
        if any(self._prices.values()):
            counts["dollars"] = sum(price * counts[name] for name, price in self._prices.items()) / 1e6
        return counts

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _complete(self, content: Content) -> str:
        return self._request(content, self._options, _text)

    def _first_token(self, content: Content, candidates: Sequence[str]) -> list[float]:
        options = {**self._options, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        top = self._request(content, options, _top_logprobs)
        if not top:
            raise QueryError(
                f"{self.base_url} gives no log-probabilities of {self.name!r}; take an endpoint that has top_logprobs, "
                "such as vLLM"
            )
        return [candidate_logprob(top, candidate) for candidate in candidates]

    def _request(self, content: Content, options: dict[str, Any], read: Callable[[Any], Result]) -> Result:
        """What `read` makes of the first choice of a chat completion; it raises NoCompletion if that is none."""
        import openai

        messages = [{"role": "user", "content": [_part(part) for part in content]}]
        for attempt in range(self.max_retries + 1):
            self._limit.wait()
            leave_if_abandoned()
            self._asking.count(requests=1, retries=int(attempt > 0))
            try:
                completion = self._client.chat.completions.create(model=self.name, messages=messages, **options)
                self._count_tokens(completion)
                return read(_first_choice(completion))
            except (openai.OpenAIError, *NO_JSON) as error:
                failure = diagnose(error, self.name, self.timeout_s, self._client.api_key)
            wait_s = self._wait_s(attempt, failure.retry_after_s)
            over = attempt == self.max_retries or wait_s > RETRY_AFTER_CAP_S
            if over or not failure.passing:
                # Outside the except block: a traceback must not show the exception of openai, which may quote the key.
                raise failure.error(self._describe(failure, attempt + 1))
            pause(wait_s)
        raise AssertionError("unreachable")

    def _count_tokens(self, completion: Any) -> None:
        usage = getattr(completion, "usage", None)
        counts = {name: getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")}
        self._asking.count(**{name: n for name, n in counts.items() if type(n) is int and 0 <= n <= MOST_TOKENS})

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return min(self.backoff_s * 2.0**attempt, BACKOFF_CAP_S) * (1.0 - 0.25 * self._random.random())

    def _describe(self, failure: Failure, requests: int) -> str:
        times = "" if requests == 1 else f", {requests} times"
        return masked(f"{self.base_url} {failure.what}{times}; {failure.advice}", self._client.api_key)


class RateLimit:
    """Lets callers pass at least 60 / `per_minute` seconds apart, whatever thread they come from.

    Args:
        per_minute: finite and greater than 0; None lets everyone pass.
        clock: seconds, never going back.
        sleep: waits so many seconds.
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
        """Take the next turn, and sleep until it comes."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval_s
        if turn > now:
            self._sleep(turn - now)


def candidate_logprob(top: Sequence[tuple[str, float]], candidate: str) -> float:
    """Log-probability of a candidate among the most likely tokens, or an upper bound of it.

    >>> candidate_logprob([("True", math.log(0.5)), (" True", math.log(0.25))], "True") == math.log(0.75)
    True

    Args:
        top: tokens and their log-probabilities, at least one.
        candidate: one word; white space around a token is no part of it.
    """
    mass = math.fsum(math.exp(logprob) for _, logprob in top)
    matching = [logprob for token, logprob in top if token.strip() == candidate]
    if matching:
        greatest = max(matching)
        return min(greatest + math.log(math.fsum(math.exp(value - greatest) for value in matching)), 0.0)
    least = min(logprob for _, logprob in top)
    return min(least, math.log1p(-mass)) if mass < 1.0 else min(least, 0.0)


def _first_choice(completion: Any) -> Any:
    """The choice, whose message is an object; the `openai` package passes on whatever JSON the server sent."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise NoCompletion(f"got {type(completion).__name__} without choices")
    message = getattr(choices[0], "message", None)
    if not hasattr(message, "content"):
        raise NoCompletion(f"got a choice with {'no message' if message is None else repr(type(message).__name__)}")
    return choices[0]


def _text(choice: Any) -> str:
    """What the model said. A refusal and an answer that was filtered have no content; they are read as empty."""
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
        # Rounding may leave a little over 0; the lowest finite number is how some servers say "impossible".
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


def _open(base_url: str | None, timeout_s: float) -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError('a chat endpoint needs the package openai: pip install "vlp_gym[prompt]"') from error
    key = os.environ.get("OPENAI_API_KEY", "").strip()  # of a file's last line end, too
    if not (key.isascii() and key.isprintable()):
        raise ValueError("OPENAI_API_KEY holds characters that no header may have; set it anew")
    if not key:
        if not (base_url or os.environ.get("OPENAI_BASE_URL")):
            raise ValueError(
                "no chat endpoint is known: set OPENAI_API_KEY for OpenAI's, or OPENAI_BASE_URL (or base_url=...) for "
                "another one"
            )
        key = "none"  # a server of one's own needs none, but the package does
    # This file retries by itself: so each request is counted, and takes its turn under the rate limit.
    return openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout_s, max_retries=0)
