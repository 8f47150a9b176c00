"""TOPReward: the probability that a chat model answers "True" to the statement that the video completes the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.frames.resize import resize_frames
from vlp_gym.models.pictures import square
from vlp_gym.models.protocol import History, Scores
from vlp_gym.models.raw_tokens import code_points, pixel_tokens, tokens_to_sentences, windows_shown
from vlp_gym.prompting.content import Chat
from vlp_gym.prompting.spec import open_chat
from vlp_gym.prompting.workers import concurrently

ANSWER = "True"


class TOPRewardModel:
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
        frame_size: (H, W) in pixels of the frames shown; one number means a square.
        max_concurrency: questions asked at a time.

    Raises (in use):
        QueryError: there is no answer, or the endpoint gives no log-probabilities.

    Example:
        >>> model = TOPRewardModel.from_spec("qwen3-vl?base_url=http://127.0.0.1:8000/v1&cache=none")
        >>> model.window, model.history
        (16, 'prefix')
    """

    history: History = "prefix"

    def __init__(
        self, chat: Chat, *, window: int = 16, frame_size: int | tuple[int, int] = 224, max_concurrency: int = 8
    ) -> None:
        if window < 1 or max_concurrency < 1:
            raise ValueError(f"expected window >= 1 and max_concurrency >= 1, got {window} and {max_concurrency}")
        self.chat, self.window, self.max_concurrency = chat, window, max_concurrency
        self.frame_size = square(frame_size)

    @classmethod
    def from_spec(cls, spec: str) -> TOPRewardModel:
        """Build from "MODEL?option=value&..."; see `vlp_gym.prompting.open_chat`.

        Further options: ``window``, ``frame_size``, ``max_concurrency``.

        Raises:
            ValueError: an option is unknown or its value invalid.
        """
        chat, options = open_chat(spec, {"window": int, "frame_size": int, "max_concurrency": int})
        return cls(chat, **options)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``; padding is zero."""
        return code_points(instructions)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Resized pixels of uint8 frames ``[N, H, W, 3]`` of any size, float16 ``[N, K, 3]``."""
        return pixel_tokens(frames, self.frame_size)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Ask about each window of pixels ``[B, T, K, 3]``; padding is not shown.

        Returns:
            Scores with ``preference``, float32 ``[B]``, a log-probability, at most 0; no ``progress`` or ``relevance``.
        """
        rows = windows_shown(frames, text, mask, self.frame_size)
        answers = concurrently(lambda row: self._ask(*row), rows, self.max_concurrency)
        return Scores(preference=torch.tensor(answers, device=frames.device))

    def values(self, video: NDArray[np.uint8], instruction: str) -> NDArray[np.float64]:
        """The value at every frame of a finished video, from the frames up to it: one question per frame.

        Args:
            video: uint8 ``[T, H, W, 3]``; T is limited by the pictures that the chat model accepts at once.
            instruction: the task.

        Returns:
            Log-probabilities, at most 0, float64 ``[T]``.
        """
        (sentence,) = tokens_to_sentences(code_points([instruction]))
        shown = resize_frames(torch.from_numpy(np.ascontiguousarray(video)), self.frame_size).numpy()
        prefixes = [shown[: stop + 1] for stop in range(len(shown))]
        return np.array(concurrently(lambda prefix: self._ask(prefix, sentence), prefixes, self.max_concurrency))

    def _ask(self, frames: NDArray[np.uint8], instruction: str) -> float:
        statement = (
            f"The above video shows a robot manipulation trajectory that completes the following task: {instruction}. "
            f"Decide whether the above statement is {ANSWER} or not. The answer is:"
        )
        return self.chat.logprobs([*frames, statement], [ANSWER])[0]
