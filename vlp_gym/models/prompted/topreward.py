"""TOPReward: the probability that a chat model answers "True" to the statement that the video completes the task."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.models.prompted.base import PromptedModel
from vlp_gym.models.protocol import Scores
from vlp_gym.models.raw_tokens import windows_shown
from vlp_gym.prompting.content import Chat
from vlp_gym.text import normalize_instruction

ANSWER = "True"


class TOPRewardModel(PromptedModel):
    """``log P("True")`` (TOPReward, section 3.1); a `RewardModel`, one question per window, no text is generated.

    The frames so far are shown in order, as single pictures, then: "The above video shows a robot manipulation
    trajectory that completes the following task: ... Decide whether the above statement is True or not. The answer
    is:". The value is the log-probability that the next token is "True".

    **The question uses the model's chat template**, because chat endpoints offer nothing else; the paper uses none, and
    a model that takes the frames as a video.

    ``score`` asks one question per window, which gives ``preference`` and no ``progress``; use ``reward="preference"``.
    `values` gives the curve of a video.

    Args:
        chat: the chat model; the endpoint must support ``top_logprobs``.
        window: T, frames per question.
        frame_size: see `PromptedModel`.
        max_concurrency: see there.

    Example:
        >>> model = TOPRewardModel.from_spec("qwen3-vl?base_url=http://127.0.0.1:8000/v1&cache=none")
        >>> model.window, model.history
        (16, 'prefix')
    """

    def __init__(
        self, chat: Chat, *, window: int = 16, frame_size: int | tuple[int, int] = 224, max_concurrency: int = 8
    ) -> None:
        if window < 1 or max_concurrency < 1:
            raise ValueError(f"expected window >= 1 and max_concurrency >= 1, got {window} and {max_concurrency}")
        super().__init__(chat, frame_size, max_concurrency)
        self.window = window

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Ask about each window of pixels ``[B, T, K, 3]``; padding is not shown.

        Returns:
            Scores with ``preference``, float32 ``[B]``, a log-probability, at most 0; no ``progress`` or ``relevance``.
        """
        answers = self.concurrently(self._ask, windows_shown(frames, text, mask, self.frame_size))
        return Scores(preference=torch.tensor(answers, device=frames.device))

    def values(self, video: NDArray[np.uint8], instruction: str) -> NDArray[np.float64]:
        """Log-probabilities, float64 ``[T]``, at every frame of a finished video, from one question for each.

        T of the video, uint8 ``[T, H, W, 3]``, is limited by the pictures that the chat model accepts at once.
        """
        sentence, shown = normalize_instruction(instruction), self.resize(video)
        return np.array(self.concurrently(self._ask, [(shown[: t + 1], sentence) for t in range(len(shown))]))

    def _ask(self, frames: NDArray[np.uint8], instruction: str) -> float:
        statement = (
            f"The above video shows a robot manipulation trajectory that completes the following task: {instruction}. "
            f"Decide whether the above statement is {ANSWER} or not. The answer is:"
        )
        return self.chat.logprobs([*frames, statement], [ANSWER])[0]
