"""RoboCLIP: one reward per episode, the similarity of its video to a sentence or a demonstration."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, DatasetError, InstructionError
from vlp_gym.models.backbones.s3dg import MAX_WORDS, S3DG
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.config import Count, Pixels, Width
from vlp_gym.models.protocol import History, Scores
from vlp_gym.models.raw_tokens import pixel_tokens
from vlp_gym.storage import read_file
from vlp_gym.text import VIDEOS, check_length, normalize_instruction

_MAX_VOCABULARY_BYTES = 256 * 2**20
_MAX_PIXELS = 2**23  # of a window: five times those of the release, 1.5 GB of activations
_CLIPS = 4  # clips per forward pass: one of 32 frames at 224 pixels takes about 0.3 GB of activations


class RoboCLIPModel(nn.Module, CheckpointMixin):
    """RoboCLIP (Sontakke et al. 2023): the dot product of the S3D-G embeddings of the episode and the instruction.

    An instruction is a sentence, or the path of a video file: a demonstration, embedded like the episode. S3D-G needs
    whole clips, so a frame's tokens are its pixels, and every score is a forward pass over `window` frames spread over
    the episode so far. **The paper pays once, when the episode ends**: ``VLPRewardWrapper(..., reward="final")``. With
    ``reward="preference"`` every step costs a forward pass. The wrapper keeps the pixels of the running episode, 0.3 MB
    per frame at size 224.

    Pixels are scaled to [0, 1], as the network was trained; the authors' script leaves them in 0..255. Episodes shorter
    than `window` repeat frames.

    Args:
        vocabulary: words of the sentence encoder, in the order of their rows, from row 1 on.
        window: frames per clip, even.
        frame_size: side of the square that frames are resized to, in pixels, even.
        width: factor on the channels of the video encoder; 1.0 is the release.
        embedding: see `S3DG`.
        word_dim: see there.
        text_hidden: see there.
        words: rows of the word embedding; None means one per word plus the padding.
        truncate: truncate sentences over 16 words instead of raising.

    Raises:
        ValueError: `window` or `frame_size` is odd or too large, or there are fewer rows than words.
    """

    model_type = "roboclip"
    history: History = "prefix"

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        window: Count = 32,
        frame_size: Pixels = 224,
        width: Annotated[float, Field(gt=0, le=64)] = 1.0,
        embedding: Width = 512,
        word_dim: Width = 300,
        text_hidden: Width = 2048,
        words: Width | None = None,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("window", window), ("frame_size", frame_size)):
            if value < 2 or value % 2:
                raise ValueError(f"{name}: expected an even number, at least 2, got {value}")
        if window * frame_size**2 > _MAX_PIXELS:
            raise ValueError(
                f"expected at most {_MAX_PIXELS} pixels a window, got {window} x {frame_size} x {frame_size}"
            )
        rows = len(vocabulary) + 1 if words is None else words
        if rows <= len(vocabulary):
            raise ValueError(f"expected more rows than the vocabulary's {len(vocabulary)} words, got words={rows}")
        self.config["words"] = rows
        self.window = window
        self.frame_size = (frame_size, frame_size)
        self.truncate = truncate
        self._rows = {word: row for row, word in enumerate(vocabulary, start=1)}
        self.s3d = S3DG(embedding=embedding, width=width, words=rows, word_dim=word_dim, text_hidden=text_hidden)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Embed B sentences, or demonstrations given by their paths, as one token each, float ``[B, 1, E]``.

        Raises:
            InstructionError: a sentence is blank, has no known word, or over 16 of them while `truncate` is False; or a
                video is missing or cannot be read.
        """
        return torch.stack([self._instruction(normalize_instruction(each)) for each in instructions])[:, None]

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Resized pixels of uint8 frames ``[N, H, W, 3]``, float16 ``[N, K, 3]`` in 0 to 255, row by row."""
        return pixel_tokens(frames.to(self._device), self.frame_size)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The dot product of each window's clip with its instruction as ``preference``, float32 ``[B]``.

        Arguments as in `RewardModel.score`: pixels ``[B, T, K, 3]`` in 0 to 255, embeddings ``[B, 1, E]``.
        """
        return Scores(preference=(self.embed_clips(frames, mask) * text[:, 0]).sum(1).float())

    def embed_clips(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Embed the real frames of pixel windows ``[B, T, K, 3]`` with mask ``[B, T]``, as ``[B, E]``."""
        embeddings = []
        for pixels, real in zip(frames.split(_CLIPS), mask.split(_CLIPS), strict=True):
            rows = torch.arange(len(pixels), device=pixels.device)[:, None]
            clips = pixels[rows, spread(real, self.window)].unflatten(2, self.frame_size)
            embeddings.append(self.s3d(clips.permute(0, 4, 1, 2, 3).to(self.s3d.fc.weight.dtype) / 255))
        return torch.cat(embeddings)

    @property
    def _device(self) -> torch.device:
        return self.s3d.fc.weight.device

    def _instruction(self, instruction: str) -> Tensor:
        """Embedding ``[E]`` of a sentence or a demonstration."""
        if instruction.lower().endswith(VIDEOS):
            return self._demonstration(Path(instruction))
        known = [self._rows[word] for word in re.findall(r"[\w']+", instruction.lower()) if word in self._rows]
        if not known:
            raise InstructionError(
                f"the instruction {instruction!r} has no word of the model's vocabulary of {len(self._rows)} words; "
                "say it in plain English words"
            )
        count = check_length(len(known), MAX_WORDS, truncate=self.truncate)
        words = torch.tensor([known[:count] + [0] * (MAX_WORDS - count)], device=self._device)
        return self.s3d.text_module(words)[0]

    def _demonstration(self, path: Path) -> Tensor:
        """Embedding ``[E]`` of frames spread over the whole video."""
        from vlp_gym.video import read_video  # with matplotlib, which is slow to import

        try:
            video = torch.from_numpy(read_video(path))
        except DatasetError as error:
            raise InstructionError(f"the instruction names a demonstration that cannot be read: {error}") from error
        chosen = spread(torch.ones(1, len(video), dtype=torch.bool), self.window)[0]
        pixels = self.encode_frames(video[chosen])[None]
        return self.embed_clips(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device))[0]


def from_published(
    state: Mapping[str, Tensor], *, vocabulary: str | Path | Sequence[str], **options: Any
) -> RoboCLIPModel:
    """Build the model from the HowTo100M release: its weights, ``s3d_howto100m.pth``, and its vocabulary.

    Args:
        state: tensors by the names of the release.
        vocabulary: the words of ``s3d_dict.npy``, or a file for `read_vocabulary`.
        options: further arguments of `RoboCLIPModel`.

    Raises:
        CheckpointError: as `load_state`; or the words cannot be read or outnumber the rows.
    """
    words = read_vocabulary(vocabulary) if isinstance(vocabulary, (str, Path)) else list(vocabulary)
    table = state.get("text_module.word_embd.weight")
    rows = len(words) + 1 if table is None else len(table)
    if rows <= len(words):
        raise CheckpointError(f"expected at most {rows - 1} words, one for each row but the first, got {len(words)}")
    model = RoboCLIPModel(words, words=rows, **options)
    # Files of old PyTorch versions lack batch norm's batch counters, which do not matter here.
    counts = {name: x for name, x in model.s3d.state_dict().items() if name.endswith("num_batches_tracked")}
    load_state(model.s3d, {**counts, **state}, "S3D-G of HowTo100M")
    return model


def spread(mask: Tensor, count: int) -> Tensor:
    """Choose `count` frames of each window, spread evenly over the real ones, first and last included.

    >>> spread(torch.tensor([[False, True, True, True, True, True], [False] * 4 + [True] * 2]), 4).tolist()
    [[1, 2, 4, 5], [4, 4, 5, 5]]

    Args:
        mask: bool ``[B, T]``, True where the frame is real; real frames come last.
        count: at least 2; frames repeat if there are fewer.

    Returns:
        int64 ``[B, count]``, sorted.
    """
    real = mask.sum(1, keepdim=True)
    steps = torch.arange(count, device=mask.device)
    # Integer rounding: the same on every device.
    return mask.shape[1] - real + (2 * steps * (real - 1) + count - 1) // (2 * (count - 1))


def read_vocabulary(path: str | Path) -> list[str]:
    """Read a vocabulary from the release's ``s3d_dict.npy``, a text file (one word per line) or a JSON list.

    Raises:
        CheckpointError: the file is missing, is not a list of words, or would have to be unpickled.
    """
    path = Path(path)
    data = read_file(path, _MAX_VOCABULARY_BYTES)
    try:
        if path.suffix == ".npy":
            array = np.load(io.BytesIO(data), allow_pickle=False)
            is_list = isinstance(array, np.ndarray) and array.dtype.kind == "U" and array.ndim == 1
            words = array.tolist() if is_list else None
        else:
            words = json.loads(data) if path.suffix == ".json" else data.decode().splitlines()
    except Exception as error:  # a pickled array is a ValueError; a damaged one can raise almost anything
        raise CheckpointError(
            f"{path}: cannot be read as a list of words ({error}); expected an .npy file of strings that is no pickle, "
            "a text file with one word a line, or a .json list"
        ) from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{path}: expected a list of words, got something else")
    return words
