"""The content of a question, and the interface of a chat model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import import_extra

Image: TypeAlias = NDArray[np.uint8]
"""One picture, uint8 ``[H, W, 3]``."""
Content: TypeAlias = Sequence["str | Image"]
"""Text and pictures in reading order."""
Schema: TypeAlias = Mapping[str, Any]
"""A JSON schema, of an object."""

Result = TypeVar("Result")


@runtime_checkable
class Chat(Protocol):
    """A vision-language model that answers in text; safe to call from several threads.

    Attributes:
        name: the model, for messages.
    """

    name: str

    def ask(self, content: Content, read: Callable[[str], Result], schema: Schema | None = None) -> Result:
        """Ask a question and parse the answer.

        Args:
            content: the user's message.
            read: parses the answer, or raises `vlp_gym.prompting.parse.Unparsed`; then the question is asked again
                with the reason added.
            schema: of an answer in JSON, for models that can be held to one; `read` must read the answers of others,
                too.

        Raises:
            QueryError: there is no answer, or none that can be parsed.
        """
        ...

    def logprobs(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """Natural log-probability that the answer begins with each candidate, a single token.

        Raises:
            QueryError: the model gives no log-probabilities.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Counters of questions; at least "requests", "retries", "cached" and "unparsed"."""
        ...

    def close(self) -> None:
        """Release resources such as connections."""
        ...


def png_bytes(image: Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    # Level 1: uploading a few per cent more is faster than compressing better.
    to_pil(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_pil(image: Image) -> Any:
    """Convert a picture to a Pillow image."""
    return import_extra("PIL.Image", "chat models need Pillow", "prompt").fromarray(np.ascontiguousarray(image))


def identity(content: Content) -> list[list[Any]]:
    """The content as JSON values for hashing: texts unchanged, pictures by size and SHA-256.

    Pixels are hashed, not the PNG file, whose bytes depend on Pillow's version.
    """
    rows: list[list[Any]] = []
    for part in content:
        if isinstance(part, str):
            rows.append(["text", part])
        else:
            rows.append(["image", list(part.shape), hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()])
    return rows
