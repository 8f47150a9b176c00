"""Scores of a finished video: each frame is encoded once, then asked about under as many sentences as needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.windows import segment_window, window_indices
from vlp_gym.models.protocol import AttendingModel, GoalModel, RewardModel
from vlp_gym.rewards.shaping import gated_progress

Floats = NDArray[np.float64]

ENCODE_BATCH = 64  # frames
SCORE_BATCH = 256  # windows at most ...
PAIR_BATCH = 32  # pairs of clips
SCORE_NUMBERS = 2**24  # ... and at most so many floats of frame tokens at a time (64 MiB)


class VideoScorer:
    """Asks a model about one open video at a time.

    Args:
        model: a live model, or its name.
        sentences: every instruction that will be asked about.
        device: where the model runs, see `GuardedModel`.
        goals: for a model that takes pictures of goals only: instruction -> its picture, uint8 ``[H, W, 3]``.

    Raises:
        InstructionError: for an instruction that is over the model's limit, or that the model cannot take.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel,
        sentences: Sequence[str],
        device: str | torch.device = "auto",
        *,
        goals: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> None:
        self.guard = GuardedModel(model, device=device)
        self.model = self.guard.model
        self._row = {sentence: row for row, sentence in enumerate(sentences)}
        self._text = self._encode(sentences, goals or {})
        self._name = ""
        self._tokens = torch.empty(0)

    def open(self, frames: NDArray[np.uint8], name: str) -> None:
        """Encode a video, uint8 ``[F, H, W, 3]``, in place of the one that was open; ``name`` goes into errors."""
        self._name = name
        chunks = torch.from_numpy(np.ascontiguousarray(frames)).split(ENCODE_BATCH)
        self._tokens = torch.cat([self.guard.encode_frames(chunk, where=name) for chunk in chunks])

    def close(self) -> None:
        """Forget the open video."""
        self._tokens = torch.empty(0)

    def novelty(self) -> float | None:
        """How far the first frame is from the training data, see `KnowingModel`; None if the model cannot say."""
        if not self.guard.knowing:
            return None
        found = float(self.guard.novelty(self._tokens[:1], where=self._name))
        return None if np.isnan(found) else found

    def window(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The frames that a segment is judged by, whatever the model's history: see `segment_window`."""
        return segment_window(start, stop, self.model.window, anchored=self.guard.anchored)

    def preferences(self, spans: Sequence[tuple[int, int]], sentences: Sequence[str]) -> Floats:
        """Preference of N segments of the video, each under its own sentence, float ``[N]``.

        Args:
            spans: (first frame, one past the last frame), see `window`.
            sentences: N instructions.
        """
        if not spans:
            return np.zeros(0)
        indices, masks = zip(*(self.window(*span) for span in spans), strict=True)
        return self._score(np.stack(indices), np.stack(masks), sentences)[0]

    def clip(self, frames: NDArray[np.uint8], start: int, stop: int, name: str) -> Tensor:
        """Frame tokens of a segment of a video, ``[T, K, D]`` on the CPU; arguments as in `window` and `open`."""
        indices, mask = self.window(start, stop)
        shown = torch.from_numpy(np.ascontiguousarray(frames[indices[mask]]))
        return self.guard.encode_frames(shown, where=name).cpu()

    def prefer_in_each_order(self, a: Sequence[Tensor], b: Sequence[Tensor], sentences: Sequence[str]) -> Floats:
        """P(a > b) of N pairs of clips, float ``[N, 2]``: asked as (a, b), and as 1 - P(b > a).

        Args:
            a: N clips, see `clip`.
            b: N clips.
            sentences: N instructions.
        """
        chances = np.zeros((len(sentences), 2))
        for sizes in {(len(one), len(other)) for one, other in zip(a, b, strict=True)}:  # pairs of one shape at a time
            rows = [i for i in range(len(a)) if (len(a[i]), len(b[i])) == sizes]
            for chunk in (rows[k : k + PAIR_BATCH] for k in range(0, len(rows), PAIR_BATCH)):
                first, second = (torch.stack([side[i] for i in chunk]).to(self.guard.device) for side in (a, b))
                text = self._text[[self._row[sentences[i]] for i in chunk]]
                forth = self.guard.prefer(first, second, text, where=self._name).double().cpu().numpy()
                back = self.guard.prefer(second, first, text, where=self._name).double().cpu().numpy()
                chances[chunk] = np.stack([forth, 1 - back], 1)
        return chances

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

    def together(self, sentence: str) -> Floats | None:
        """Progress of all frames, shown as one window, float ``[F]``; None without such a head."""
        mask = torch.ones(1, len(self._tokens), dtype=torch.bool, device=self._tokens.device)
        row = self._row[sentence]
        scores = self.guard.score(self._tokens[None], self._text[row : row + 1], mask, where=self._name)
        return None if scores.progress is None else _array([scores.progress[0]])

    def attention(self, sentence: str, words: Sequence[int] | None = None) -> tuple[NDArray[np.int64], Floats]:
        """Where a sentence, or some of its words, look in T frames that are spread evenly over the video.

        Args:
            sentence: the instruction.
            words: numbers of the text tokens to average over; None: all.

        Returns:
            The frames, int64 ``[T]``, and their maps, float ``[T, h, w]``, each of sum 1.

        Raises:
            TypeError: the model has no attention, see `AttendingModel`.
        """
        if not isinstance(self.model, AttendingModel):
            raise TypeError(f"expected a model with attention maps, got {type(self.model).__name__}")
        chosen, mask = self.window(0, len(self._tokens))
        text = self._text[self._row[sentence]][None]
        shown = None
        if words is not None:
            shown = torch.zeros(text.shape[:2], dtype=torch.bool, device=text.device)
            shown[0, list(words)] = True
        frames = self._tokens[torch.from_numpy(chosen[mask]).to(self._tokens.device)][None]
        real = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        maps = self.model.attention_maps(frames, text, real, shown)
        return chosen[mask], maps[0].double().cpu().numpy()

    def final_rewards(self, sentences: Sequence[str]) -> dict[str, float] | None:
        """What the wrapper pays at the last frame (gated progress) by sentence; None without a progress head."""
        indices, mask = window_indices(len(self._tokens), self.model.window, self.model.history)
        rows = len(sentences)
        _, progress, relevance = self._score(np.tile(indices, (rows, 1)), np.tile(mask, (rows, 1)), sentences)
        if progress is None:
            return None
        gates = [None] * rows if relevance is None else relevance.tolist()
        return {s: gated_progress(p, r) for s, p, r in zip(sentences, progress.tolist(), gates, strict=True)}

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
            scores = self.guard.score(frames, self._text[rows[k : k + size]], mask, where=self._name)
            newest = None if scores.progress is None else scores.progress[:, -1]
            answers.append((scores.preference, newest, scores.relevance))
        preference, progress, relevance = (_array(parts) for parts in zip(*answers, strict=True))
        assert preference is not None
        return preference, progress, relevance

    def _encode(self, sentences: Sequence[str], goals: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        """Text tokens of all instructions, ``[B, L, D]``."""
        takes_goals = isinstance(self.model, GoalModel) and self.model.needs_goal
        if not (takes_goals and all(sentence in goals for sentence in sentences)):
            return self.guard.encode_text(sentences, where="instructions")
        pictures = [torch.from_numpy(goals[sentence])[None] for sentence in sentences]
        return torch.cat([self.guard.encode_goals(picture, where="goal pictures") for picture in pictures])


def _array(parts: Sequence[Tensor | None]) -> Floats | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present).double().cpu().numpy() if present else None
