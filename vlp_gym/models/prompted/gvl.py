"""GVL: a chat model gives each of the shuffled frames of a video a completion percentage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.models.prompted.base import PromptedModel
from vlp_gym.models.protocol import Scores
from vlp_gym.models.raw_tokens import windows_shown
from vlp_gym.prompting.content import Chat, Image
from vlp_gym.prompting.parse import parse_percentages
from vlp_gym.prompting.shots import Example, check_example, load_examples
from vlp_gym.prompting.spec import Options
from vlp_gym.text import normalize_instruction

FORMAT = "Frame {i}: Frame Description: {}, Task Completion Percentages: {}%"


class GVLModel(PromptedModel):
    """Generative Value Learning (GVL, section 3 and appendix B); a `RewardModel`, one question per window.

    The chat model sees the first frame, stated to be at 0 %, and then the others in random order (eq. 3), because in
    temporal order models just count up. The prompt is the paper's, without the sentence about examples if there are
    none. The order follows from a hash of pixels and instruction, so that equal questions are equal in every batch and
    run, and answers can be cached.

    **By construction the first frame of a window has progress 0.** With history "prefix" it is the episode's first
    frame; for a segment from the middle of an episode, progress is measured within the segment.

    Choices where the paper is silent: frames are numbered from 1 in the order shown; examples come before the first
    frame, in the part of the prompt that all questions share; ``preference`` is the progress of the newest frame; a
    video of one frame needs no question.

    Args:
        chat: see `PromptedModel`.
        frame_size: see there.
        max_concurrency: see there.
        examples: frames, uint8 ``[T, H, W, 3]``, and percentages in [0, 100] of videos of any task with known progress;
            each is shown shuffled (eq. 4).
        window: T, frames per question, the first one included.

    Example:
        >>> model = GVLModel.from_spec("qwen2.5-vl?base_url=http://127.0.0.1:8000/v1&cache=none")
        >>> model.window, model.history
        (16, 'prefix')
    """

    # A folder, see `vlp_gym.prompting.shots.load_examples`.
    options: ClassVar[Options] = {**PromptedModel.options, "examples": load_examples}

    def __init__(
        self,
        chat: Chat,
        *,
        examples: Sequence[Example] = (),
        window: int = 16,
        frame_size: int | tuple[int, int] = 224,
        max_concurrency: int = 8,
    ) -> None:
        if window < 2 or max_concurrency < 1:
            raise ValueError(f"expected window >= 2 and max_concurrency >= 1, got {window} and {max_concurrency}")
        super().__init__(chat, frame_size, max_concurrency)
        self.window = window
        self._examples = [part for example in examples for part in self._show(*example)]

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Ask about each window of pixels ``[B, T, K, 3]``; padding is not shown and has progress 0.

        Returns:
            Scores with ``progress``, float32 ``[B, T]`` in [0, 1], and ``preference``, float32 ``[B]``, that of the
            newest frame.
        """
        answers = self.concurrently(self._ask, windows_shown(frames, text, mask, self.frame_size))
        progress = torch.zeros(mask.shape)
        for values, real, answer in zip(progress, mask.cpu(), answers, strict=True):
            values[real] = torch.from_numpy(answer).float()
        progress = progress.to(frames.device)
        return Scores(preference=progress[:, -1].clone(), progress=progress)

    def values(self, video: NDArray[np.uint8], instruction: str) -> NDArray[np.float64]:
        """The value of every frame of a finished video, from one question about all frames, as in the paper.

        T of the video, uint8 ``[T, H, W, 3]``, is limited by the pictures that the chat model accepts at once.

        Returns:
            Values in [0, 1], float64 ``[T]``; see `vlp_gym.evaluation.curation` for their use.
        """
        return self._ask(self.resize(video), normalize_instruction(instruction))

    def _ask(self, frames: NDArray[np.uint8], instruction: str) -> NDArray[np.float64]:
        """Values in [0, 1], float64 ``[T]``, of frames in temporal order."""
        values = np.zeros(len(frames))
        if len(frames) == 1:
            return values
        order = 1 + shuffled(frames[1:], instruction)
        answer = self.chat.ask(
            self._prompt(frames, order, instruction), lambda answer: parse_percentages(answer, len(order))
        )
        values[order] = np.asarray(answer) / 100.0
        return values

    def _prompt(self, frames: NDArray[np.uint8], order: NDArray[np.int64], instruction: str) -> list[str | Image]:
        examples = (
            "We provide several examples of the robot performing the task at various stages and their corresponding "
            "task completion percentages. "
        )
        content: list[str | Image] = [
            "You are an expert roboticist tasked to predict task completion percentages for frames of a robot for the "
            f"task of {instruction}. The task completion percentages are between 0 and 100, where 100 corresponds to "
            f"full task completion. {examples if self._examples else ''}Note that these frames are in random order, so "
            "please pay attention to the individual frames when reasoning about task completion percentage.",
            *self._examples,
            "Initial robot scene:",
            frames[0],
            "In the initial robot scene, the task completion percentage is 0.",
            f"Now, for the task of {instruction}, output the task completion percentage for the following frames that "
            f"are presented in random order. For each frame, format your response as follow: {FORMAT}",
        ]
        for number, index in enumerate(order, start=1):
            content += [f"Frame {number}:", frames[index]]
        return content

    def _show(self, frames: NDArray[np.uint8], percentages: Sequence[float]) -> list[Any]:
        """Prompt parts of an example, shuffled."""
        check_example(frames, percentages)
        shown = self.resize(frames)
        parts: list[Any] = []
        for index in shuffled(shown, ""):
            parts += ["Example frame:", shown[index], f"Task Completion Percentages: {percentages[index]:.4g}%"]
        return parts


def shuffled(frames: NDArray[np.uint8], instruction: str) -> NDArray[np.int64]:
    """A pseudo-random order, int64 ``[T]``, that depends only on the frames ``[T, H, W, 3]`` and the instruction."""
    digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes() + instruction.encode())
    return np.random.default_rng(int.from_bytes(digest.digest(), "big")).permutation(len(frames))
