"""What several models make of the same sentences, for a model that is made of others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.models.protocol import RewardModel
from vlp_gym.models.raw_tokens import code_points
from vlp_gym.text import normalize_instruction

MAX_TEXTS = 1_000  # cached sentences


class Texts:
    """Each model's text tokens of the sentences that were asked about; a sentence is encoded once.

    Args:
        models: the models, in the order of their numbers.
    """

    def __init__(self, models: Sequence[RewardModel]) -> None:
        self.models = models
        self._known: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``; raises here if one is too long for a model."""
        sentences = [normalize_instruction(instruction) for instruction in instructions]
        if len(self._known) > MAX_TEXTS:
            self._known.clear()  # they are encoded again when needed
        for sentence in sentences:
            self._of(sentence)
        return code_points(sentences)

    def padded(self, sentences: Sequence[str], number: int, device: torch.device) -> Tensor:
        """Text tokens of B sentences for one of the models, ``[B, L, D]``, padded with zeros."""
        return nn.utils.rnn.pad_sequence([self._of(each)[number].to(device) for each in sentences], batch_first=True)

    def _of(self, sentence: str) -> list[Tensor]:
        if sentence not in self._known:
            with torch.no_grad():
                self._known[sentence] = [model.encode_text([sentence])[0] for model in self.models]
        return self._known[sentence]
