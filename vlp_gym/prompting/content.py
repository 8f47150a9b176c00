"""What a chat model is shown, and what it must be able to do."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vlp_gym.errors import MissingExtraError

Image: TypeAlias = NDArray[np.uint8]
"""One picture, uint8 ``[H, W, 3]``."""
Content: TypeAlias = Sequence["str | Image"]
"""Text and pictures in the order in which they are read."""

Result = TypeVar("Result")


@runtime_checkable
class Chat(Protocol):
    """A vision-language model that answers in words; safe to call from several threads.

    Attributes:
        name: the model, for messages.
    """

    name: str

    def ask(self, content: Content, read: Callable[[str], Result]) -> Result:
        """Ask, and read the answer.

        Args:
            content: what the user says.
            read: makes a value of the answer, or raises `vlp_gym.prompting.parse.Unparsed`; then the model is told
                what was wrong and asked again.

        Raises:
            QueryError: if there is no answer, or none that can be read.
        """
        ...

    def logprobs(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """Natural logarithm of the probability that the answer begins with the one token that is each candidate.

        Raises:
            QueryError: if the model does not tell.
        """
        ...

    def stats(self) -> dict[str, float]:
        """What was asked so far; at least "requests", "retries", "cached" and "unparsed"."""
        ...

    def close(self) -> None:
        """Give back what is held, such as connections."""
        ...


def png_bytes(image: Image) -> bytes:
    """A picture as a PNG file, without loss."""
    buffer = io.BytesIO()
    # Level 1: an upload of a few per cent more is quicker than the compression.
    to_pil(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_pil(image: Image) -> Any:
    """A picture as Pillow has it."""
    try:
        from PIL import Image as PILImage
    except ImportError as error:
        raise MissingExtraError('chat models need Pillow: pip install "vlp_gym[prompt]"') from error
    return PILImage.fromarray(np.ascontiguousarray(image))


def identity(content: Content) -> list[list[Any]]:
    """The content as JSON values: texts as they are, pictures by size and SHA-256.

    The pixels are hashed, not the PNG file, whose bytes change with Pillow's version.
    """
    rows: list[list[Any]] = []
    for part in content:
        if isinstance(part, str):
            rows.append(["text", part])
        else:
            rows.append(["image", list(part.shape), hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()])
    return rows
