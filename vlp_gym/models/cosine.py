"""The common form of CLIP, LIV and the embedding models: the reward is the cosine of a frame and the sentence."""

from __future__ import annotations

from torch import Tensor

from vlp_gym.models.protocol import History, Scores, frame_scores


def cosine(frames: Tensor, text: Tensor) -> Tensor:
    """Cosines ``[B, T]`` in [-1, 1] of unit vectors: frames ``[B, T, D]``, the text ``[B, 1, D]``."""
    return (frames.float() * text.float()).sum(-1).clamp(-1, 1)  # rounding may exceed the range


class CosineModel:
    """A model of one unit vector per frame and one per sentence, ``r_t = cos(v_t, l)``.

    The reward of a frame depends on no other frame.
    """

    window = 8
    history: History = "sliding"
    value_range = (-1.0, 1.0)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The cosine of each frame and the sentence.

        Args:
            frames: float ``[B, T, 1, D]``, unit length.
            text: float ``[B, 1, D]``, unit length.
            mask: bool ``[B, T]``, True where the frame is real.

        Returns:
            Scores with ``progress``, float32 ``[B, T]`` in [-1, 1], and ``preference``, float32 ``[B]``, its mean over
            the real frames.
        """
        return frame_scores(cosine(frames[:, :, 0], text), mask)
