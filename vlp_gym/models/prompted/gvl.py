"""GVL: a chat model gives each of the shuffled frames of a video a completion percentage."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.models.prompted.base import PromptedModel
from vlp_gym.models.protocol import Scores
from vlp_gym.models.raw_tokens import windows_shown
from vlp_gym.prompting.content import Chat, Image
from vlp_gym.prompting.parse import parse_percentages, percentages_schema
from vlp_gym.prompting.shots import Example, check_example, load_examples
from vlp_gym.prompting.spec import Options
from vlp_gym.text import normalize_instruction

_SWITCHES = {"1": True, "true": True, "0": False, "false": False}


def _switch(text: str) -> bool:
    """Parse "1" or "0"."""
    if text.lower() not in _SWITCHES:
        raise ValueError("expected 1 or 0")
    return _SWITCHES[text.lower()]


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
        shuffle: show the frames in random order; False shows them in the order of time, and the prompt then does not
            say that they are shuffled (GVL, figures 5, 11, 17).
        single_frame: ask about each frame alone, without the first one beside it (GVL, table 4); the first frame's
            progress is then an answer like the others.
        goal_image: the last frame of the window is shown as the goal in the place of the sentence; for finished videos.

    Example:
        >>> model = GVLModel.from_spec("qwen2.5-vl?base_url=http://127.0.0.1:8000/v1&cache=none")
        >>> model.window, model.history
        (16, 'prefix')
    """

    # A folder, see `vlp_gym.prompting.shots.load_examples`.
    options: ClassVar[Options] = {
        **PromptedModel.options, "examples": load_examples, "shuffle": _switch, "single_frame": _switch,
        "goal_image": _switch,
    }  # fmt: skip

    def __init__(
        self,
        chat: Chat,
        *,
        examples: Sequence[Example] = (),
        window: int = 16,
        frame_size: int | tuple[int, int] = 224,
        max_concurrency: int = 8,
        shuffle: bool = True,
        single_frame: bool = False,
        goal_image: bool = False,
    ) -> None:
        if window < 2 or max_concurrency < 1:
            raise ValueError(f"expected window >= 2 and max_concurrency >= 1, got {window} and {max_concurrency}")
        super().__init__(chat, frame_size, max_concurrency)
        self.window = window
        self.shuffle, self.single_frame, self.goal_image = shuffle, single_frame, goal_image
        self._examples = [part for example in examples for part in self._show(*example)]
        self._examples_of: dict[str, list[Any]] = {}

    def show_examples(self, examples: Mapping[str, Sequence[Example]]) -> None:
        """Set further examples that are shown with some instructions only: instruction -> its examples."""
        self._examples_of = {
            normalize_instruction(said): [part for example in own for part in self._show(*example)]
            for said, own in examples.items()
        }

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
        if len(frames) == 1 and not self.single_frame:
            return values
        order = 1 + (shuffled(frames[1:], instruction) if self.shuffle else np.arange(len(frames) - 1))
        for asked in [np.array([index]) for index in range(len(frames))] if self.single_frame else [order]:
            read = functools.partial(parse_percentages, count=len(asked))
            answer = self.chat.ask(self._prompt(frames, asked, instruction), read, percentages_schema(len(asked)))
            values[asked] = np.asarray(answer) / 100.0
        return values

    def _prompt(self, frames: NDArray[np.uint8], order: NDArray[np.int64], instruction: str) -> list[str | Image]:
        task = "reaching the scene of the goal picture" if self.goal_image else instruction
        examples = [*self._examples, *self._examples_of.get(instruction, ())]
        shown = (
            "We provide several examples of the robot performing the task at various stages and their corresponding "
            "task completion percentages. "
        )
        mixed = self.shuffle and not self.single_frame
        hint = "Note that these frames are in random order, so please" if mixed else "Please"
        content: list[str | Image] = [
            "You are an expert roboticist tasked to predict task completion percentages for frames of a robot for the "
            f"task of {task}. The task completion percentages are between 0 and 100, where 100 corresponds to "
            f"full task completion. {shown if examples else ''}{hint} "
            "pay attention to the individual frames when reasoning about task completion percentage.",
            *examples,
        ]
        if self.goal_image:
            content += ["Goal picture:", frames[-1]]
        if not self.single_frame:
            content += [
                "Initial robot scene:",
                frames[0],
                "In the initial robot scene, the task completion percentage is 0.",
            ]
        which = "the following frames that are presented in random order" if mixed else "the following frames"
        content.append(
            f"Now, for the task of {task}, output the task completion percentage for {which}. For each frame, format "
            f"your response as follow: {FORMAT}"
        )
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
