"""JSON files of a run that a person may read and edit: they have a schema, and no hash."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vlp_gym.errors import CheckpointError
from vlp_gym.schema import Document, first_fault
from vlp_gym.storage import read_file

MAX_BYTES = 2**20

_D = TypeVar("_D", bound=Document)


def read_json(kind: type[_D], path: Path) -> _D:
    """Read a JSON file as a document of this kind.

    Raises:
        CheckpointError: it is missing, large or damaged, or a field is wrong.
    """
    try:
        return kind.model_validate_json(read_file(path, MAX_BYTES))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_fault(error)}") from None
