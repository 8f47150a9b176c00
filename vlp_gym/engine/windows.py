"""The history policy: which frames of the episode so far form the window of a score.

The wrappers, the data sets and the evaluation all use it, so that a model has the same windows in training and use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlp_gym.models.protocol import History


def window_indices(num_frames: int, window: int, history: History) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose the window of T frames from the `num_frames` frames of an episode so far.

    The last frame is always the newest one. With fewer than T frames the front is padded with the first frame, and the
    mask is False there.

    Args:
        num_frames: n >= 1, frames so far, the reset frame included.
        window: T >= 1, frames per score.
        history: "sliding" takes the last T frames; "prefix" spreads T frames evenly over all n, including the first
            (for T >= 2) and the last; "prefix-floor" rounds their places down instead of to the nearest frame.

    Returns:
        Sorted indices into the n frames, int64 ``[T]``, and the mask, bool ``[T]``, True where the frame is real.

    Raises:
        ValueError: a number is below 1, or the history is unknown.

    Example:
        >>> indices, mask = window_indices(9, 5, "prefix")
        >>> indices.tolist(), mask.all().item()
        ([0, 2, 4, 6, 8], True)
        >>> indices, mask = window_indices(2, 4, "sliding")
        >>> indices.tolist(), mask.tolist()
        ([0, 0, 0, 1], [False, False, True, True])
    """
    if num_frames < 1 or window < 1:
        raise ValueError(f"num_frames and window must be at least 1, got {num_frames} and {window}")
    if history not in ("sliding", "prefix", "prefix-floor"):
        raise ValueError(f"history must be 'sliding', 'prefix' or 'prefix-floor', got {history!r}")
    if num_frames <= window:
        padding = window - num_frames
        indices = np.concatenate([np.zeros(padding, np.int64), np.arange(num_frames)])
        return indices, np.arange(window) >= padding
    if history == "sliding" or window == 1:  # a window of one frame is the newest frame, not the first
        indices = np.arange(num_frames - window, num_frames)
    else:
        places = np.linspace(0, num_frames - 1, window)
        indices = (places if history == "prefix-floor" else places.round()).astype(np.int64)
    return indices, np.ones(window, np.bool_)


def segment_window(
    start: int, stop: int, window: int, *, anchored: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose the frames that a segment of an episode is judged by: spread evenly over it (VLP, section 4.2).

    Args:
        start: the segment's first frame.
        stop: one past its last frame.
        window: T >= 1, frames per score.
        anchored: put the episode's first frame in front, masked out, for an `AnchoredModel`.

    Returns:
        Indices into the episode's frames, int64 ``[T]``, and the mask, bool ``[T]``; ``[T + 1]`` if anchored.

    Example:
        >>> segment_window(4, 9, 3, anchored=True)[0].tolist()
        [0, 4, 6, 8]
    """
    chosen, mask = window_indices(stop - start, window, "prefix")
    if anchored:
        return np.insert(start + chosen, 0, 0), np.insert(mask, 0, False)
    return start + chosen, mask
