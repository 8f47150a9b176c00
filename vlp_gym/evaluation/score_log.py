"""Values of videos on disk as they come, so that a run that was broken off goes on, and asks no question twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlp_gym.errors import CheckpointError
from vlp_gym.schema import Document


class Scored(Document):
    """What a model said of one video.

    Attributes:
        key: see `ScoreLog.key`.
        value: values of the frames shown; empty if it refused.
        refused: why there are none; None if there are.
        novelty: how far the first frame is from the training data; None if the model cannot say.
    """

    key: str
    value: Annotated[list[float], Field(max_length=100_000)]
    refused: str | None
    novelty: float | None


class ScoreLog:
    """A file with a line of JSON for each video. A line that a killed process left unfinished is dropped.

    Args:
        path: created with the first video; its folder must be there.
        model: name of the model.

    Raises:
        CheckpointError: if the file holds something else.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self.known: dict[str, Scored] = {}
        if not path.exists():
            return
        data = path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(lines.splitlines(), start=1):
            try:
                scored = Scored.parse(json.loads(line), f"{path}, line {number}")
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{path}, line {number}: expected JSON ({error}); remove the file") from error
            self.known[scored.key] = scored
        if len(lines) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(lines))

    def key(self, frames: NDArray[np.uint8], sentence: str) -> str:
        """Names a question to the model: frames, uint8 ``[T, H, W, 3]``, under a sentence."""
        digest = hashlib.sha256(json.dumps([self.model, sentence, frames.shape]).encode())
        digest.update(np.ascontiguousarray(frames).data)
        return digest.hexdigest()

    def add(self, scored: Scored) -> None:
        """Append a video."""
        self.known[scored.key] = scored
        with self.path.open("a") as file:
            file.write(scored.model_dump_json() + "\n")
