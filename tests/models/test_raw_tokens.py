"""Pixels and sentences that travel as tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.errors import InstructionError
from vlp_gym.models.pictures import square
from vlp_gym.models.raw_tokens import code_points, pixel_tokens, tokens_to_images, tokens_to_sentences


def test_pixels_survive_as_tokens() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(6)[: 2 * 4 * 6 * 3].view(2, 4, 6, 3).contiguous()
    tokens = pixel_tokens(frames, (4, 6))
    assert (tokens.shape, tokens.dtype) == ((2, 24, 3), torch.float16)
    assert np.array_equal(tokens_to_images(tokens, (4, 6)), frames.numpy())
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert np.array_equal(tokens_to_images(pixel_tokens(every, (16, 16)), (16, 16)), every.numpy())
    with pytest.raises(TypeError, match=r"^expected uint8 frames \[N, H, W, 3\], got torch.float32 \[1, 2, 2, 3\]$"):
        pixel_tokens(torch.zeros(1, 2, 2, 3), (2, 2))


def test_sentences_survive_as_tokens() -> None:
    sentences = ["open the drawer", "öffne die Tür", "🚪"]
    text = code_points([f" {sentence} " for sentence in sentences])
    assert text.shape == (3, 15, 1)
    assert tokens_to_sentences(text) == sentences
    assert (text[2, 1:] == 0).all()
    with pytest.raises(InstructionError):
        code_points([" "])


def test_a_frame_size_is_one_number_or_two() -> None:
    assert square((3, 5)) == (3, 5)
    with pytest.raises(ValueError, match=r"^frame_size must be at least 1 pixel, got 0$"):
        square(0)
