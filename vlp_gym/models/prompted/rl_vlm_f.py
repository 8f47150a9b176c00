"""RL-VLM-F: a chat model chooses which of two pictures is nearer to the goal."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vlp_gym.models.prompted.base import PromptedModel
from vlp_gym.models.protocol import Scores
from vlp_gym.models.raw_tokens import tokens_to_images, tokens_to_sentences
from vlp_gym.prompting.content import Chat, Image
from vlp_gym.prompting.parse import CHOICE_SCHEMA, parse_choice, parse_text
from vlp_gym.prompting.spec import Options

CHANCES = {0: 1.0, 1: 0.0, -1: 0.5}  # answer -> P(the first picture is better)


class RLVLMFModel(PromptedModel):
    """Preferences from a two-stage prompt (RL-VLM-F, section 4); a `RewardModel` with a pairwise head.

    First the model describes both pictures and how they differ with regard to the goal; then, from this description
    alone, it answers 0 (the first picture is better), 1 (the second) or -1 (no difference, or not sure). The questions
    are the paper's, reworded.

    The paper trains a reward on such labels and drops pairs with the answer -1, as `ModelLabeler` does with a margin
    above 0; it also asks in both orders, because such models favour one side. The paper's schedule, 40 queries every
    4,000 steps, at most 20,000, with single pictures as segments::

        labeler = ModelLabeler("rl-vlm-f:MODEL", "open the drawer", margin=0.1)
        queries = Queries(budget=20_000, session=40, every=4_000, length=1)

    A longer segment is represented by its last frame.

    `score` compares a video's last frame with its first: 1 (better), -1 (worse) or 0 (no difference). That is a coarse
    reward and costs two questions per step.

    Args:
        chat: see `PromptedModel`.
        frame_size: see there.
        max_concurrency: pairs asked about at a time.

    Example:
        >>> model = RLVLMFModel.from_spec("qwen2.5-vl?base_url=http://127.0.0.1:8000/v1&cache=none")
        >>> model.window, model.history
        (2, 'prefix')
    """

    window = 2  # the episode's first frame and the newest one
    options: ClassVar[Options] = {"frame_size": int, "max_concurrency": int}

    def __init__(self, chat: Chat, *, frame_size: int | tuple[int, int] = 224, max_concurrency: int = 8) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
        super().__init__(chat, frame_size, max_concurrency)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Compare the last frame of each window of pixels ``[B, T, K, 3]`` with its first real one.

        Returns:
            Scores with ``preference``, float32 ``[B]`` of -1, 0 and 1; ``progress`` and ``relevance`` are None.
        """
        first = frames[torch.arange(len(frames), device=frames.device), mask.int().argmax(1)]
        worse = self._chances(first, frames[:, -1], text)  # temporal order: the first frame is Image 1
        return Scores(preference=1.0 - 2.0 * worse)

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float32 ``[B]`` of 0, 0.5 (no preference) and 1; see `PairwiseModel.prefer`.

        The last frames are shown, that of a as Image 1, that of b as Image 2.
        """
        return self._chances(a[:, -1], b[:, -1], text)

    def _chances(self, first: Tensor, second: Tensor, text: Tensor) -> Tensor:
        """P(the first picture is better), ``[B]``, of pixels ``[B, K, 3]``."""
        pictures = (tokens_to_images(side, self.frame_size) for side in (first, second))
        choices = self.concurrently(self._ask, zip(*pictures, tokens_to_sentences(text), strict=True))
        return torch.tensor([CHANCES[choice] for choice in choices], device=first.device)

    def _ask(self, first: Image, second: Image, instruction: str) -> int:
        if np.array_equal(first, second):
            return -1  # equal pictures need no question
        questions = (
            "1. What does Image 1 show?\n2. What does Image 2 show?\n"
            f"3. The goal is: {instruction}. With regard to this goal, how do Image 1 and Image 2 differ?"
        )
        reply = self.chat.ask(["Look at these two images.\nImage 1:", first, "Image 2:", second, questions], parse_text)
        verdict = (
            f"These questions were asked about two images:\n{questions}\n\nThe answers were:\n{reply}\n\n"
            "Going by these answers, in which image is the goal better achieved? Reply with one line that holds only a "
            "number: 0 for Image 1, 1 for Image 2, or -1 if there is no difference or the answers are not sure."
        )
        return self.chat.ask([verdict], parse_choice, CHOICE_SCHEMA)
