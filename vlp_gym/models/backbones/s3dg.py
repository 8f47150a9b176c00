"""S3D-G with a sentence encoder, in the layout of the HowTo100M MIL-NCE release (Miech et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_WORDS = 16

# Name, (kernel, stride) of the max pool before it, and widths: 1x1; 1x1 and 3x3x3; 1x1 and 3x3x3; pool and 1x1.
_MIXED: tuple[tuple[str, tuple[int, int] | None, tuple[int, int, int, int, int, int]], ...] = (
    ("mixed_3b", None, (64, 96, 128, 16, 32, 32)),
    ("mixed_3c", None, (128, 128, 192, 32, 96, 64)),
    ("mixed_4b", (3, 2), (192, 96, 208, 16, 48, 64)),
    ("mixed_4c", None, (160, 112, 224, 24, 64, 64)),
    ("mixed_4d", None, (128, 128, 256, 24, 64, 64)),
    ("mixed_4e", None, (112, 144, 288, 32, 64, 64)),
    ("mixed_4f", None, (256, 160, 320, 32, 128, 128)),
    ("mixed_5b", (2, 2), (256, 160, 320, 32, 128, 128)),
    ("mixed_5c", None, (384, 192, 384, 48, 128, 128)),
)


class S3DG(nn.Module):
    """A joint space of clips and sentences: separable 3D inception blocks with self-gating, and a fixed vocabulary.

    The video encoder is S3D-G (Xie et al. 2018, "Rethinking Spatiotemporal Feature Learning"), whose first layer reads
    blocks of 2 x 2 x 2 pixels as 24 channels. State dict keys are those of the release.

    Args:
        embedding: E, width of the joint space.
        width: factor on the channels of every layer of the video encoder; 1.0 is the release.
        words: rows of the word embedding; row 0 is the padding.
        word_dim: width of a word vector.
        text_hidden: width of the sentence encoder's hidden layer.
    """

    def __init__(
        self,
        *,
        embedding: int = 512,
        width: float = 1.0,
        words: int = 66_250,
        word_dim: int = 300,
        text_hidden: int = 2048,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        self.conv1 = STConv(24, scaled(64), (2, 4, 4))
        self.conv_2b = STConv(scaled(64), scaled(64), (1, 1, 1))
        self.conv_2c = STConv(scaled(64), scaled(192), (3, 3, 3))
        self.gating = SelfGating(scaled(192))
        channels = scaled(192)
        for name, _, widths in _MIXED:
            block = Mixed(channels, *map(scaled, widths))
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, embedding)
        self.text_module = TextModule(embedding, words, word_dim, text_hidden)

    def forward(self, video: Tensor) -> Tensor:
        """Embed clips, float ``[B, 3, T, H, W]`` in [0, 1], T, H and W even, as float ``[B, E]``, not normalised."""
        return self.fc(self.features(video).mean((2, 3, 4)))

    def features(self, video: Tensor) -> Tensor:
        """Last feature map of clips ``[B, 3, T, H, W]``, ``[B, C, T / 8, H / 32, W / 32]``, rounded up."""
        # TensorFlow's 'SAME' padding for an even kernel: one more at the end than at the start.
        x = self.conv1(F.pad(space_to_depth(video), (1, 2, 1, 2, 0, 1)))
        x = self.conv_2c(self.conv_2b(pool_same(x, (1, 3, 3), (1, 2, 2))))
        x = pool_same(self.gating(x), (1, 3, 3), (1, 2, 2))
        for name, pool, _ in _MIXED:
            if pool is not None:
                kernel, stride = pool
                x = pool_same(x, (kernel,) * 3, (stride,) * 3)
            x = self.get_submodule(name)(x)
        return x


class STConv(nn.Module):
    """A convolution with batch norm and ReLU; a 3 x 3 x 3 kernel is split into one in space, then one in time.

    Only 3 x 3 x 3 kernels are padded, which keeps the size.
    """

    def __init__(self, channels: int, out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.separable = kernel == (3, 3, 3)
        first = (1, 3, 3) if self.separable else kernel
        self.conv1 = nn.Conv3d(channels, out, first, padding=(0, 1, 1) if self.separable else 0, bias=False)
        self.bn1 = nn.BatchNorm3d(out)
        if self.separable:
            self.conv2 = nn.Conv3d(out, out, (3, 1, 1), padding=(1, 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, T, H, W]`` -> ``[B, out, T', H', W']``."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x))) if self.separable else x


class SelfGating(nn.Module):
    """Scale each channel by a sigmoid gate computed from the mean of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` -> the same."""
        weights = torch.sigmoid(self.fc(x.mean((2, 3, 4))))
        return x * weights[:, :, None, None, None]


class Mixed(nn.Module):
    """An inception block of four gated branches; it keeps T, H and W.

    Attributes:
        channels: output channels.
    """

    def __init__(self, channels: int, b0: int, b1_a: int, b1_b: int, b2_a: int, b2_b: int, b3_b: int) -> None:
        super().__init__()
        self.conv_b0 = STConv(channels, b0, (1, 1, 1))
        self.conv_b1_a = STConv(channels, b1_a, (1, 1, 1))
        self.conv_b1_b = STConv(b1_a, b1_b, (3, 3, 3))
        self.conv_b2_a = STConv(channels, b2_a, (1, 1, 1))
        self.conv_b2_b = STConv(b2_a, b2_b, (3, 3, 3))
        self.conv_b3_b = STConv(channels, b3_b, (1, 1, 1))
        self.gating_b0 = SelfGating(b0)
        self.gating_b1 = SelfGating(b1_b)
        self.gating_b2 = SelfGating(b2_b)
        self.gating_b3 = SelfGating(b3_b)
        self.channels = b0 + b1_b + b2_b + b3_b

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T, H, W]`` -> ``[B, channels, T, H, W]``."""
        branches = (
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(F.max_pool3d(x, 3, stride=1, padding=1))),
        )
        return torch.cat(branches, 1)


class TextModule(nn.Module):
    """Sentence encoder, the maximum over words; the padding to 16 words counts, as in the release."""

    def __init__(self, embedding: int, words: int, word_dim: int, hidden: int) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(words, word_dim)
        self.fc1 = nn.Linear(word_dim, hidden)
        self.fc2 = nn.Linear(hidden, embedding)

    def forward(self, words: Tensor) -> Tensor:
        """Embed word ids, int64 ``[B, 16]``, as float ``[B, E]``."""
        return self.fc2(F.relu(self.fc1(self.word_embd(words))).amax(1))


def space_to_depth(video: Tensor) -> Tensor:
    """Move blocks of 2 x 2 x 2 pixels into channels: ``[B, C, T, H, W]`` -> ``[B, 8 C, T / 2, H / 2, W / 2]``.

    In the new channels the colour varies fastest, then the column, the row and the frame within the block.
    """
    blocks = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, T, t, H, h, W, w]
    return blocks.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


def pool_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Max pooling with TensorFlow's 'SAME' zero padding, for non-negative input."""
    ends = [max(k - s, 0) for k, s in zip(kernel, stride, strict=True)]  # 0 or 1, padded at the end
    padding = [side for end in reversed(ends) for side in (0, end)]
    return F.max_pool3d(F.pad(x, padding), kernel, stride, ceil_mode=True)
