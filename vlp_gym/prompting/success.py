"""Success as a question to a chat model: SuccessVQA, with and without reasoning first (GVL, table 2)."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from vlp_gym.prompting.content import Chat, Image
from vlp_gym.prompting.parse import Unparsed

_ANSWER = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def ask_success(chat: Chat, frames: NDArray[np.uint8], instruction: str, *, reasoning: bool = False) -> bool:
    """Whether the chat model says that a video shows the task done.

    All frames are shown in the order of time, then the question; the paper does not print its own.

    Args:
        chat: the chat model.
        frames: uint8 ``[T, H, W, 3]``.
        instruction: the task in one sentence.
        reasoning: let it think aloud first; the answer is on the last line.

    Raises:
        QueryError: see `Chat.ask`.
    """
    form = (
        "First reason step by step about what the frames show. Then end with one line that holds only yes or no."
        if reasoning
        else "Reply with one line that holds only yes or no."
    )
    content: list[str | Image] = [f"These frames show, in the order of time, a robot at the task of {instruction}."]
    for number, frame in enumerate(frames, start=1):
        content += [f"Image {number} of {len(frames)}:", frame]
    content.append(f"Has the robot completed the task of {instruction} by the end of these frames? {form}")
    return chat.ask(content, parse_success)


def parse_success(answer: str) -> bool:
    """Read yes or no from the last line that is not blank.

    >>> parse_success("The drawer is shut.\\n**Yes**"), parse_success("no.")
    (True, False)

    Raises:
        Unparsed: that line has none or both of them.
    """
    lines = [line for line in answer.splitlines() if line.strip()]
    found = {word.lower() for word in _ANSWER.findall(lines[-1])} if lines else set()
    if len(found) != 1:
        raise Unparsed("the last line has neither yes nor no, or both")
    return found == {"yes"}
