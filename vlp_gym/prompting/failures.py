"""Diagnose errors of a chat endpoint: what happened, whether to retry, and what to do."""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from dataclasses import dataclass
from typing import Any

from vlp_gym.errors import AnswerError, QueryError, QueryTimeout

REFUSED = ("content_filter", "content_policy_violation")  # codes of an endpoint that refuses a question
PASSING = (408, 409, 429)  # statuses worth a retry, besides 5xx
NOT_IMPLEMENTED = 501


class RequestRefused(QueryError):
    """The endpoint does not take such a request, whatever the question."""


class NoCompletion(ValueError):
    """The endpoint answered with JSON that is not a chat completion."""


@dataclass(frozen=True)
class Failure:
    """One request that failed.

    Attributes:
        what: what the endpoint did; follows its address in the message.
        advice: what to do.
        passing: whether the same request may succeed later.
        retry_after_s: the server's Retry-After in seconds, or None.
        error: type of the exception to raise.
    """

    what: str
    advice: str
    passing: bool = True
    retry_after_s: float | None = None
    error: type[QueryError] = QueryError


def diagnose(error: Exception, model: str, timeout_s: float, key: str) -> Failure:
    """Diagnose an exception of the `openai` package, or one raised for a malformed body.

    Args:
        error: the exception; it may quote the key.
        model: name of the model.
        timeout_s: time limit of the request, in seconds.
        key: the API key, masked in the result.
    """
    import openai

    from vlp_gym.prompting.bounded import Refused

    for raised in (error, error.__cause__):  # some versions of openai raise a connection error from it
        if isinstance(raised, Refused):
            return Failure(_short(raised.what, key), raised.advice, passing=False)
    if isinstance(error, (asyncio.TimeoutError, openai.APITimeoutError)):  # first: the latter is a connection error
        return Failure(
            f"did not answer within {timeout_s:g} s",
            "raise timeout_s for a slow model, or see whether the server is busy",
            error=QueryTimeout,
        )
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return Failure(f"could not be reached ({_short(cause, key)})", "start the server, or correct base_url")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, model, key)
    return Failure(
        f"sent no chat completion ({_short(error, key)})",
        "base_url must be an OpenAI-compatible endpoint, whose address usually ends in /v1",
    )


def masked(text: str, key: str) -> str:
    """Mask the key in a text; one of up to 4 characters, such as "none", is no secret.

    >>> masked("no such key: sk-123", "sk-123")
    'no such key: ***'
    """
    return text.replace(key, "***") if len(key) > 4 else text


def _of_status(error: Any, model: str, key: str) -> Failure:
    status = int(error.status_code)
    message = error.body.get("message") if isinstance(error.body, dict) else None
    what = f"answered {status} ({_short(message or error.message, key)})"
    if status in (401, 403):
        return Failure(what, f"set OPENAI_API_KEY to a key that may use {model!r}", passing=False)
    if status == 404:
        return Failure(what, f"see whether it has the model {model!r}, and whether base_url ends in /v1", passing=False)
    if error.code in REFUSED:
        return Failure(what, f"{model!r} is not asked such things there", passing=False, error=AnswerError)
    if error.code == "insufficient_quota":  # also 429, but waiting does not help
        return Failure(what, "the account has no credit left", passing=False)
    if status in PASSING or (status >= 500 and status != NOT_IMPLEMENTED):
        advice = "try later"
        if status == 429:
            advice = "lower requests_per_minute or max_concurrency, or try later"
        return Failure(what, advice, retry_after_s=retry_after_s(error.response.headers))
    advice = f"the endpoint does not take such a request for {model!r}"
    return Failure(what, advice, passing=False, error=RequestRefused)


def retry_after_s(headers: Any) -> float | None:
    """Seconds to wait from Retry-After-Ms, or Retry-After as a number or a date; None for anything else.

    >>> retry_after_s({"retry-after": "2.5"}), retry_after_s({"retry-after": "nan"})
    (2.5, None)
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return None if date is None else max(email.utils.mktime_tz(date) - time.time(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):  # an impossible date
        return None


def _short(words: Any, key: str) -> str:
    """A server's message on one line, with the key masked before it is cut to 200 characters."""
    return " ".join(masked(str(words), key).split())[:200]
