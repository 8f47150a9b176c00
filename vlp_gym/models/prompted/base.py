"""What the prompted models share: a chat model that is asked concurrently, and tokens that keep whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.pictures import square
from vlp_gym.models.protocol import History
from vlp_gym.models.raw_tokens import code_points, pixel_tokens
from vlp_gym.prompting.content import Chat
from vlp_gym.prompting.spec import Options, open_chat
from vlp_gym.prompting.workers import concurrently

ModelT = TypeVar("ModelT", bound="PromptedModel")
Answer = TypeVar("Answer")


class PromptedModel:
    """Base of a `RewardModel` that asks a chat model; text tokens are code points, frame tokens are pixels.

    Args:
        chat: the chat model.
        frame_size: (H, W) in pixels of the frames shown; one number means a square.
        max_concurrency: questions asked at a time.

    Raises (in use):
        QueryError: there is no answer, or none that can be used.
    """

    history: History = "prefix"
    options: ClassVar[Options] = {"window": int, "frame_size": int, "max_concurrency": int}
    """The options of `from_spec` besides those of `vlp_gym.prompting.open_chat`, with their parsers."""

    def __init__(self, chat: Chat, frame_size: int | tuple[int, int], max_concurrency: int) -> None:
        self.chat, self.frame_size, self.max_concurrency = chat, square(frame_size), max_concurrency

    @classmethod
    def from_spec(cls: type[ModelT], spec: str) -> ModelT:
        """Build from "MODEL?option=value&..."; see `vlp_gym.prompting.open_chat`, and `options` for further ones.

        Raises:
            ValueError: an option is unknown or its value invalid.
        """
        chat, given = open_chat(spec, cls.options)
        build: Callable[..., ModelT] = cls
        return build(chat, **given)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``; padding is zero."""
        return code_points(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Resized pixels of uint8 frames ``[N, H, W, 3]`` of any size, float16 ``[N, K, 3]``."""
        return pixel_tokens(frames, self.frame_size)

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frames ``[T, H, W, 3]`` as the chat model sees them, uint8 ``[T, *frame_size, 3]``."""
        return resize_frames(torch.from_numpy(np.ascontiguousarray(frames)), self.frame_size).numpy()

    def concurrently(self, ask: Callable[..., Answer], rows: Iterable[Sequence[Any]]) -> list[Answer]:
        """``ask(*row)`` for every row, `max_concurrency` at a time."""
        return concurrently(lambda row: ask(*row), rows, self.max_concurrency)
