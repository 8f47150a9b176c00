"""A model's config, the arguments of its constructor: their types and ranges, checked before anything is built."""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from vlp_gym.errors import CheckpointError

Count = Annotated[int, Field(ge=1, le=4096)]
"""Layers, heads, or frames of a window."""
Width = Annotated[int, Field(ge=1, le=2**20)]
"""Width of a layer, or rows of a table."""
Pixels = Annotated[int, Field(ge=1, le=1024)]
"""Side of a square picture."""
Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A weight or a shift; larger ones would overflow."""


def check_config(model_class: type, config: Mapping[str, Any], where: str | Path) -> None:
    """Raise CheckpointError unless a config has just the constructor's arguments, each of the annotated type and range.

    Arguments without an annotation may have any value. No number is taken for another type's.
    """
    arguments = _arguments(model_class)
    if missing := sorted(arguments.keys() - config.keys()):
        raise CheckpointError(f"{where}: its config does not say {missing}; it is of another vlp_gym")
    if unknown := sorted(config.keys() - arguments.keys()):
        raise CheckpointError(f"{where}: a {model_class.__name__} takes no {reprlib.repr(unknown[0])}")
    try:
        _schema(model_class).validate_json(json.dumps(config))
    except (TypeError, ValueError, RecursionError) as error:  # of json.dumps, and pydantic's own
        if not isinstance(error, ValidationError):
            raise CheckpointError(f"{where}: a config takes JSON values only ({error})") from error
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("config", *first["loc"])))
        got = "" if first["type"] == "json_invalid" else f", got {reprlib.repr(first['input'])}"
        raise CheckpointError(f"{where}: {place}: {first['msg'].lower()}{got}") from error


def _arguments(model_class: type) -> dict[str, Any]:
    """The constructor's arguments that a config holds, with their types."""
    names = list(inspect.signature(model_class.__init__).parameters)[1:]  # type: ignore[misc]
    hints = get_type_hints(model_class.__init__, include_extras=True)  # type: ignore[misc]
    return {name: hints.get(name, Any) for name in names if name not in getattr(model_class, "not_stored", ())}


@cache
def _schema(model_class: type) -> TypeAdapter[Any]:
    # A live object, which some arguments may be instead of a name, is an arbitrary type; no file can hold one.
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(with_config(strict)(TypedDict("config", _arguments(model_class))))  # type: ignore[misc,operator]
