"""A model's config, the arguments of its constructor: their types and ranges, checked before anything is built."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from vlp_gym.errors import CheckpointError
from vlp_gym.schema import Document, first_fault

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
    """Check that a config has all arguments of a model's constructor, each of the annotated type and range.

    An argument without an annotation may be anything.

    Raises:
        CheckpointError: naming `where` and the first argument that is wrong.
    """
    schema = _schema(model_class)
    if missing := sorted(schema.model_fields.keys() - config.keys()):
        raise CheckpointError(f"{where}: its config does not say {missing}; it is of another vlp_gym")
    try:
        text = json.dumps(config)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: a config takes JSON values only ({error})") from error
    try:
        schema.model_validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{where}: config: {first_fault(error)}") from None


class _Config(Document):
    # Some arguments may be a live object instead of a name. It is of an arbitrary type, and no file can hold it.
    model_config = ConfigDict(arbitrary_types_allowed=True)


@cache
def _schema(model_class: type) -> type[_Config]:
    names = list(inspect.signature(model_class.__init__).parameters)[1:]  # type: ignore[misc]
    hints = get_type_hints(model_class.__init__, include_extras=True)  # type: ignore[misc]
    stored = [name for name in names if name not in getattr(model_class, "not_stored", ())]
    fields: dict[str, Any] = {name: (hints.get(name, Any), ...) for name in stored}
    return create_model(model_class.__name__, __base__=_Config, **fields)
