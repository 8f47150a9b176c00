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
from vlp_gym.prompting.failures import Failure, NoCompletion, diagnose

Result = TypeVar("Result")

TOP_LOGPROBS = 20  # the most that the protocol gives
BACKOFF_CAP_S = 8.0
RETRY_AFTER_CAP_S = 60.0


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
        if timeout_s <= 0 or max_retries < 0:
            raise ValueError(f"expected timeout_s > 0 and max_retries >= 0, got {timeout_s} and {max_retries}")
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
        # A refusal and an answer that was filtered have no content; they are read, and refused, like an empty one.
        return str(self._request(content, self._options).message.content or "")

    def _first_token(self, content: Content, candidates: Sequence[str]) -> list[float]:
        choice = self._request(
            content, {**self._options, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        )
        listed = getattr(choice, "logprobs", None)
        if listed is None or not listed.content or not listed.content[0].top_logprobs:
            raise QueryError(
                f"{self.base_url} gives no log-probabilities of {self.name!r}; take an endpoint that has top_logprobs, "
                "such as vLLM"
            )
        top = [(entry.token, float(entry.logprob)) for entry in listed.content[0].top_logprobs]
        return [candidate_logprob(top, candidate) for candidate in candidates]

    def _request(self, content: Content, options: dict[str, Any]) -> Any:
        """The first choice of a chat completion."""
        import openai

        messages = [{"role": "user", "content": [_part(part) for part in content]}]
        for attempt in range(self.max_retries + 1):
            self._limit.wait()
            self._asking.count(requests=1, retries=int(attempt > 0))
            try:
                completion = self._client.chat.completions.create(model=self.name, messages=messages, **options)
                return self._first_choice(completion)
            # ValueError: the body is no JSON, or no completion; openai lets the former through as it is.
            except (openai.OpenAIError, ValueError) as error:
                failure = diagnose(error, self.name, self.timeout_s)
                wait_s = self._wait_s(attempt, failure.retry_after_s)
                over = attempt == self.max_retries or wait_s > RETRY_AFTER_CAP_S
                if over or not failure.passing:
                    raise failure.error(self._describe(failure, attempt + 1)) from error
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def _first_choice(self, completion: Any) -> Any:
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise NoCompletion(f"got {type(completion).__name__} without choices")
        usage = getattr(completion, "usage", None)
        self._asking.count(
            prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
            completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
        )
        return choices[0]

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return retry_after_s
        return min(self.backoff_s * 2.0**attempt, BACKOFF_CAP_S) * (1.0 - 0.25 * self._random.random())

    def _describe(self, failure: Failure, requests: int) -> str:
        times = "" if requests == 1 else f", {requests} times"
        message = f"{self.base_url} {failure.what}{times}; {failure.advice}"
        key = self._client.api_key  # a server may quote it
        return message.replace(key, "***") if len(key) > 4 else message


class RateLimit:
    """Lets callers pass at least 60 / `per_minute` seconds apart, whatever thread they come from.

    Args:
        per_minute: greater than 0; None lets everyone pass.
        clock: seconds, never going back.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ValueError(f"requests_per_minute must be greater than 0, got {per_minute}")
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
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        if not (base_url or os.environ.get("OPENAI_BASE_URL")):
            raise ValueError(
                "no chat endpoint is known: set OPENAI_API_KEY for OpenAI's, or OPENAI_BASE_URL (or base_url=...) for "
                "another one"
            )
        key = "none"  # a server of one's own needs none, but the package does
    # This file retries by itself: so each request is counted, and takes its turn under the rate limit.
    return openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout_s, max_retries=0)
