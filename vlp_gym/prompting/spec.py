"""Chat models by specification: "MODEL?option=value&...", "local/ORG/NAME?..."."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from vlp_gym.prompting.client import ChatClient
from vlp_gym.prompting.content import Chat
from vlp_gym.prompting.local import LocalChat

Options = Mapping[str, Callable[[str], Any]]

LOCAL = "local/"


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Parse "none" as None, anything else with `kind`."""
    return lambda text: None if text.lower() == "none" else kind(text)


_EITHER: Options = {"cache": or_none(str), "attempts": int, "max_tokens": or_none(int)}
_CLIENT: Options = {
    **_EITHER,
    "base_url": str,
    "temperature": or_none(float),
    "timeout_s": float,
    "deadline_s": float,
    "max_retries": int,
    "requests_per_minute": or_none(float),
    "prompt_price": float,
    "completion_price": float,
}
_LOCAL: Options = {**_EITHER, "device": str, "dtype": str}


def open_chat(spec: str, own: Options | None = None) -> tuple[Chat, dict[str, Any]]:
    """Build the chat model of a specification.

    Args:
        spec: "MODEL" at an OpenAI-compatible endpoint, or "local/ORG/NAME" (also "local/" and a folder) for a local
            `transformers` model; then "?" and options "name=value" joined by "&" (percent-encode "&" and "%"). They
            are the arguments of `ChatClient` or `LocalChat`.
        own: the caller's further options, with their parsers.

    Returns:
        The chat model, and the given values of `own`.

    Raises:
        ValueError: an option is unknown or its value invalid.
    """
    name, _, query = spec.partition("?")
    if not name:
        raise ValueError(f'expected "MODEL" or "local/ORG/NAME", got {spec!r}')
    local = name.startswith(LOCAL)
    known = _LOCAL if local else _CLIENT
    own = own or {}
    given: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        option, _, text = pair.partition("=")
        read = known.get(option) or own.get(option)
        if read is None:
            raise ValueError(f"{spec!r}: expected options of {sorted([*known, *own])}, got {option!r}")
        try:
            given[option] = read(unquote(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{spec!r}: {option} cannot be {text!r} ({error})") from error
    mine = {option: given.pop(option) for option in own if option in given}
    chat: Chat = LocalChat(name.removeprefix(LOCAL), **given) if local else ChatClient(name, **given)
    return chat, mine
