"""What a frozen backbone makes of videos, on disk, so that each frame is encoded once for all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from vlp_gym.errors import DatasetError
from vlp_gym.models.checkpoint import hash_weights
from vlp_gym.storage import write_atomic


class TokenFiles:
    """One file per video, in half precision, named by a hash of the backbone's weights and of the frames.

    So runs may share a folder, other weights or frames find no wrong tokens, and an interrupted encoding goes on. The
    eight frames of a video take 2.4 MB with ViT-B/16.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._backbone = b""

    def fill(self, backbone: Any, videos: Iterable[np.ndarray], count: int, *, progress_bar: bool) -> None:
        """Encode the videos whose files are missing.

        Args:
            backbone: an ``nn.Module`` with ``encode_frames``, frozen.
            videos: uint8 ``[T, H, W, 3]`` each.
            count: how many there are.
            progress_bar: show a progress bar.

        Raises:
            ValueError: if a weight of the backbone is trained.
        """
        if any(parameter.requires_grad for parameter in backbone.parameters()):
            raise ValueError("token files: expected a frozen backbone, got one that is trained")
        digest = hashlib.sha256(f"{backbone.frame_size}".encode())
        hash_weights(digest, backbone)
        self._backbone = digest.digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        for video in tqdm(videos, "encoding frames", count, unit="video", disable=not progress_bar):
            if not (path := self._path(video)).exists():
                with torch.no_grad():
                    tokens = backbone.encode_frames(torch.from_numpy(video))
                write_atomic(path, safetensors.torch.save({"tokens": tokens.half().cpu().contiguous()}))

    def read(self, video: np.ndarray) -> Tensor:
        """The tokens of a video, float16 ``[T, K, D]``; call `fill` first.

        Raises:
            DatasetError: if its file is missing or damaged.
        """
        path = self._path(video)
        try:
            return safetensors.torch.load_file(path)["tokens"]
        except (OSError, SafetensorError, KeyError) as error:
            raise DatasetError(
                f"{path}: expected the tokens of a video ({error}); remove it and train again"
            ) from error

    def _path(self, video: np.ndarray) -> Path:
        digest = hashlib.sha256(self._backbone + f"{video.shape}".encode())
        digest.update(np.ascontiguousarray(video).data)
        return self.folder / f"{digest.hexdigest()}.safetensors"
