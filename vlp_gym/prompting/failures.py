"""What went wrong at a chat endpoint, whether it may pass, and what to do."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass
from typing import Any

from vlp_gym.errors import QueryError, QueryTimeout

PASSING = (408, 409, 429)  # and all of 5xx


class NoCompletion(ValueError):
    """The endpoint answered with JSON that is no chat completion."""


@dataclass(frozen=True)
class Failure:
    """One request that failed.

    Attributes:
        what: what the endpoint did, to stand after its address.
        advice: what to do.
        passing: whether the same request may succeed later.
        retry_after_s: seconds that the server asks to wait, or None.
        error: the exception to raise.
    """

    what: str
    advice: str
    passing: bool = True
    retry_after_s: float | None = None
    error: type[QueryError] = QueryError


def diagnose(error: Exception, model: str, timeout_s: float) -> Failure:
    """Judge an exception of the `openai` package, or a ValueError for a body that is no chat completion."""
    import openai

    if isinstance(error, openai.APITimeoutError):  # first: it is a connection error, too
        return Failure(
            f"did not answer within {timeout_s:g} s",
            "raise timeout_s for a slow model, or see whether the server is busy",
            error=QueryTimeout,
        )
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return Failure(f"could not be reached ({cause})", "start the server, or correct base_url")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, model)
    return Failure(
        f"sent no chat completion ({error})",
        "base_url must be an OpenAI-compatible endpoint, whose address usually ends in /v1",
    )


def _of_status(error: Any, model: str) -> Failure:
    status = int(error.status_code)
    what = f"answered {status} ({_said(error)})"
    if status in (401, 403):
        return Failure(what, f"set OPENAI_API_KEY to a key that may use {model!r}", passing=False)
    if status == 404:
        return Failure(what, f"see whether it has the model {model!r}, and whether base_url ends in /v1", passing=False)
    if error.code == "insufficient_quota":  # also 429, but waiting does not help
        return Failure(what, "the account has no credit left", passing=False)
    if status in PASSING or status >= 500:
        advice = "try later"
        if status == 429:
            advice = "lower requests_per_minute or max_concurrency, or try later"
        return Failure(what, advice, retry_after_s=retry_after_s(error.response.headers))
    return Failure(what, f"the endpoint does not take such a request for {model!r}", passing=False)


def retry_after_s(headers: Any) -> float | None:
    """Seconds that a server asks to wait: Retry-After-Ms, or Retry-After as a number or a date."""
    try:
        return max(float(headers["retry-after-ms"]) / 1000.0, 0.0)
    except (KeyError, ValueError):
        pass
    text = headers.get("retry-after", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        date = email.utils.parsedate_tz(text)
        return None if date is None else max(email.utils.mktime_tz(date) - time.time(), 0.0)


def _said(error: Any) -> str:
    """The server's own words, short."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error.message).split())[:200]
