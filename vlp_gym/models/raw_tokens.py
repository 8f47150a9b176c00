"""Lossless tokens, pixels and code points, for models that take whole pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.frames.resize import resize_frames
from vlp_gym.text import normalize_instruction


def pixel_tokens(frames: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """Resize uint8 frames ``[N, h, w, 3]`` and give one token per pixel, float16 ``[N, H * W, 3]``, integers 0-255.

    Raises:
        TypeError: the frames are not uint8 ``[N, h, w, 3]``.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return resize_frames(frames, frame_size).flatten(1, 2).half()


def tokens_to_images(tokens: Tensor, frame_size: tuple[int, int]) -> NDArray[np.uint8]:
    """The resized frames of `pixel_tokens`: ``[..., H * W, 3]`` -> uint8 ``[..., H, W, 3]``."""
    images = tokens.float().round().to(torch.uint8).cpu().numpy()
    return images.reshape(*images.shape[:-2], *frame_size, 3)


def windows_shown(
    frames: Tensor, text: Tensor, mask: Tensor, frame_size: tuple[int, int]
) -> list[tuple[NDArray[np.uint8], str]]:
    """The real frames, uint8 ``[t, H, W, 3]``, and the sentence of each of B windows.

    Windows are as in `RewardModel.score`; frames come from `pixel_tokens`, text from `code_points`.
    """
    rows = zip(tokens_to_images(frames, frame_size), mask.cpu().numpy(), tokens_to_sentences(text), strict=True)
    return [(images[real], sentence) for images, real, sentence in rows]


def code_points(instructions: Sequence[str]) -> Tensor:
    """Sentences as their Unicode code points, float32 ``[B, L, 1]``; padding is zero.

    >>> code_points(["ab", "c"]).squeeze(-1).tolist()
    [[97.0, 98.0], [99.0, 0.0]]

    Raises:
        InstructionError: a sentence is blank or holds invalid characters.
    """
    sentences = [normalize_instruction(instruction) for instruction in instructions]
    tokens = torch.zeros(len(sentences), max(map(len, sentences), default=0), 1)
    for row, sentence in zip(tokens, sentences, strict=True):
        row[: len(sentence), 0] = torch.tensor([float(ord(character)) for character in sentence])
    return tokens


def tokens_to_sentences(text: Tensor) -> list[str]:
    """The B sentences behind the code points ``[B, L, 1]``."""
    rows = text.squeeze(-1).long().tolist()
    return ["".join(chr(point) for point in row if point) for row in rows]
