"""A text encoder that needs no download: the sum of hashed words and word pairs."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.text import check_length, normalize_sentence

MAX_WORDS = 64
PAIR_WEIGHT = 0.5
UNTRAINED = 1e-3  # initial standard deviation; at 0 all sentences would start equal


class HashedWords(nn.Module):
    """Sum of one vector per word and half a vector per pair of neighbours, projected and scaled to norm sqrt(D).

    The table starts near zero and trained words grow a hundredfold, so untrained words hardly contribute.

    Args:
        buckets: size of the hash table.
        dim: D, width of the output.
        word_dropout: probability that training drops a word (never all of them).
        truncate: truncate sentences over 64 words instead of raising.
    """

    def __init__(self, buckets: int = 4096, dim: int = 96, word_dropout: float = 0.15, truncate: bool = False) -> None:
        super().__init__()
        self.buckets, self.dim, self.word_dropout, self.truncate = buckets, dim, word_dropout, truncate
        self.table = nn.Embedding(buckets, dim)
        nn.init.normal_(self.table.weight, std=UNTRAINED)
        self.project = nn.Linear(dim, dim, bias=False)

    def forward(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences, float ``[B, 1, dim]``; raises InstructionError, see `vlp_gym.text`."""
        buckets: list[int] = []
        weights: list[float] = []
        starts: list[int] = []
        for instruction in instructions:
            words = self._words(instruction)
            pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
            starts.append(len(buckets))
            buckets += [zlib.crc32(key.encode()) % self.buckets for key in (*words, *pairs)]
            weights += [1.0] * len(words) + [PAIR_WEIGHT] * len(pairs)
        table = self.table.weight
        total = F.embedding_bag(
            torch.tensor(buckets, dtype=torch.int64, device=table.device), table,
            torch.tensor(starts, dtype=torch.int64, device=table.device), mode="sum",
            per_sample_weights=torch.tensor(weights, dtype=table.dtype, device=table.device),
        )  # fmt: skip
        # Row by row: a matrix product would round a sentence otherwise in another company.
        projected = (total[:, None] * self.project.weight).sum(-1)
        return F.normalize(projected, dim=-1)[:, None] * self.dim**0.5

    def _words(self, instruction: str) -> list[str]:
        words = re.findall(r"\w+", normalize_sentence(instruction).lower())
        words = words[: check_length(len(words), MAX_WORDS, truncate=self.truncate)]
        if self.training and len(words) > 1:
            kept = [word for word in words if torch.rand(()).item() >= self.word_dropout]
            return kept or words
        return words
