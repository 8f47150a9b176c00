"""Scores of a finished video: each frame is encoded once, then asked about under as many sentences as needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.windows import window_indices
from vlp_gym.errors import QueryError
from vlp_gym.models.protocol import RewardModel
from vlp_gym.rewards.shaping import gated_progress

Floats = NDArray[np.float64]

ENCODE_BATCH = 64  # frames
SCORE_BATCH = 256  # windows at most ...
SCORE_NUMBERS = 2**24  # ... and at most so many floats of frame tokens at a time (64 MiB)


class VideoScorer:
    """Asks a model about one open video at a time.

    Args:
        model: the model; moved to ``device`` and put in eval mode if it is a module.
        sentences: every instruction that will be asked about.
        device: a torch device.
    """

    def __init__(self, model: RewardModel, sentences: Sequence[str], device: str = "cpu") -> None:
        self.model, self.device = model, torch.device(device)
        if isinstance(model, torch.nn.Module):
            model.to(self.device).eval()
        self._row = {sentence: row for row, sentence in enumerate(sentences)}
        with torch.inference_mode():
            self._text = model.encode_text(sentences)
        self._name = ""
        self._tokens = torch.empty(0)

    @torch.inference_mode()
    def open(self, frames: NDArray[np.uint8], name: str) -> None:
        """Encode a video, uint8 ``[F, H, W, 3]``, in place of the one that was open; ``name`` goes into errors."""
        self._name = name
        chunks = torch.from_numpy(np.ascontiguousarray(frames)).split(ENCODE_BATCH)
        self._tokens = torch.cat([self.model.encode_frames(chunk.to(self.device)) for chunk in chunks])

    def preferences(self, spans: Sequence[tuple[int, int]], sentences: Sequence[str]) -> Floats:
        """Preference of N segments of the video, each under its own sentence, float ``[N]``.

        Args:
            spans: (first frame, one past the last frame); the window's T frames are spread evenly over it, whatever the
                model's history, as VLP samples a video (section 4.2).
            sentences: N instructions.
        """
        if not spans:
            return np.zeros(0)
        windows = [window_indices(stop - start, self.model.window, "prefix") for start, stop in spans]
        indices = np.stack([start + chosen for (start, _), (chosen, _) in zip(spans, windows, strict=True)])
        return self._score(indices, np.stack([mask for _, mask in windows]), sentences)[0]

    def values(self, sentence: str, order: NDArray[np.int64] | None = None) -> Floats:
        """Value at each frame, from that frame and those before it: progress, or preference without such a head.

        Args:
            sentence: the instruction.
            order: int64 ``[N]``, the frames to show; None shows the video as it is.

        Returns:
            float ``[N]``, in the order shown.
        """
        order = np.arange(len(self._tokens)) if order is None else order
        windows = [window_indices(t + 1, self.model.window, self.model.history) for t in range(len(order))]
        indices = np.stack([order[chosen] for chosen, _ in windows])
        masks = np.stack([mask for _, mask in windows])
        preference, progress, _ = self._score(indices, masks, [sentence] * len(order))
        return preference if progress is None else progress

    @torch.inference_mode()
    def together(self, sentence: str) -> Floats | None:
        """Progress of all frames, shown as one window, float ``[F]``; None without such a head."""
        mask = torch.ones(1, len(self._tokens), dtype=torch.bool, device=self._tokens.device)
        row = self._row[sentence]
        progress = self.model.score(self._tokens[None], self._text[row : row + 1], mask).progress
        return None if progress is None else self._gather([progress[0]])

    def final_rewards(self, sentences: Sequence[str]) -> dict[str, float] | None:
        """What the wrapper pays at the last frame (gated progress) by sentence; None without a progress head."""
        indices, mask = window_indices(len(self._tokens), self.model.window, self.model.history)
        rows = len(sentences)
        _, progress, relevance = self._score(np.tile(indices, (rows, 1)), np.tile(mask, (rows, 1)), sentences)
        if progress is None:
            return None
        gates = [None] * rows if relevance is None else relevance.tolist()
        return {s: gated_progress(p, r) for s, p, r in zip(sentences, progress.tolist(), gates, strict=True)}

    @torch.inference_mode()
    def _score(
        self, indices: NDArray[np.int64], masks: NDArray[np.bool_], sentences: Sequence[str]
    ) -> tuple[Floats, Floats | None, Floats | None]:
        """Preference, progress at the newest frame and relevance of N windows, float ``[N]`` each."""
        size = max(1, min(SCORE_BATCH, SCORE_NUMBERS // (indices.shape[1] * self._tokens[0].numel())))
        rows = torch.tensor([self._row[s] for s in sentences], device=self._text.device)
        answers: list[tuple[Tensor | None, ...]] = []
        for k in range(0, len(indices), size):
            frames = self._tokens[torch.from_numpy(indices[k : k + size]).to(self._tokens.device)]
            mask = torch.from_numpy(masks[k : k + size]).to(self._tokens.device)
            scores = self.model.score(frames, self._text[rows[k : k + size]], mask)
            newest = None if scores.progress is None else scores.progress[:, -1]
            answers.append((scores.preference, newest, scores.relevance))
        preference, progress, relevance = (self._gather(parts) for parts in zip(*answers, strict=True))
        if preference is None:
            raise QueryError(f"the model gave no preference ({self._name})")
        return preference, progress, relevance

    def _gather(self, parts: Sequence[Tensor | None]) -> Floats | None:
        present = [part for part in parts if part is not None]
        if not present:
            return None
        array: Floats = torch.cat(present).double().cpu().numpy()
        if not np.isfinite(array).all():
            raise QueryError(f"the model answered NaN or inf ({self._name})")
        return array
