"""Pictures that a model does not know: how far they are from its training data, in words."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.engine.engine import QueryEngine
from vlp_gym.models.protocol import NOVEL


def unknown(engine: QueryEngine, frames: NDArray[np.uint8], *, where: object) -> str | None:
    """What to say of frames, uint8 ``[N, H, W, 3]``, if the model knows no such pictures; see `KnowingModel`."""
    model = engine.model
    if not model.knowing:
        return None
    pictures = torch.from_numpy(frames)
    return far_away(engine.exclusively(lambda: model.novelty(model.encode_frames(pictures, where=where), where=where)))


def far_away(novelty: Tensor) -> str | None:
    """What to say of pictures so far from the training data, ``[N]``; None if none is far, or nobody knows."""
    if not (far := novelty > NOVEL).any():
        return None
    which = "such pictures" if far.all() else f"{int(far.sum())} of {len(far)} pictures"
    most = f"{'up to ' if far.sum() > 1 else ''}{float(novelty[far].max()):.1f}"
    return (
        f"the reward model does not know {which}: they are {most} away from its training data, where 1 is usual and "
        f"{NOVEL:g} is far. Its rewards may mean nothing here. Look at the reward of a good and of a bad episode "
        "(vlp-gym score), train it on videos of your own (vlp-gym train --init), or take a model for any picture "
        "(docs/models.md)"
    )
