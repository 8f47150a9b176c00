"""Labelled pairs of segments, from which the reward is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vlp_gym.errors import CheckpointError
from vlp_gym.preferences.segments import Segments
from vlp_gym.schema import Document, Positive, Spec, check_tensors
from vlp_gym.storage import Packed

FORMAT = 1
FIRST, EQUAL, SECOND, SKIP = 1.0, 0.5, 0.0, float("nan")
"""A label is P(first > second); a pair labelled SKIP is not kept."""

_TABLE = {
    "inputs": Spec(torch.float32, ("N", 2, "L", "D")),
    "mask": Spec(torch.bool, ("N", 2, "L")),
    "labels": Spec(torch.float32, ("N",), low=0, high=1),
}


class _Saved(Document):
    format: Literal[1]
    capacity: Positive


class PreferenceBuffer(Packed):
    """Stores the newest labelled pairs.

    Args:
        capacity: number of pairs kept.

    Raises:
        ValueError: for a capacity below 1.
    """

    stem = "preferences"

    def __init__(self, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._blocks: dict[str, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._blocks.get("labels", ()))

    @property
    def inputs(self) -> NDArray[np.float32]:
        """States and actions, concatenated, float32 ``[N, 2, L, S + A]``; all sizes 0 while it is empty."""
        return self._blocks.get("inputs", np.zeros((0, 2, 0, 0), np.float32))

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where a step is real, bool ``[N, 2, L]``."""
        return self._blocks.get("mask", np.zeros((0, 2, 0), np.bool_))

    @property
    def labels(self) -> NDArray[np.float32]:
        """P(first > second), float32 ``[N]``."""
        return self._blocks.get("labels", np.zeros(0, np.float32))

    def add(self, first: Segments, second: Segments, labels: ArrayLike, *, soft: bool = False) -> int:
        """Add labelled pairs; above the capacity, the oldest are dropped.

        Args:
            first: N segments.
            second: N segments.
            labels: ``[N]``; 1 (the first is better), 0 (the second), 0.5 (equal) or NaN (skipped: not kept).
            soft: allow any probability in [0, 1].

        Returns:
            Number of pairs added.

        Raises:
            ValueError: for another label, different numbers of segments, or a segment without a step, with NaN or inf.
        """
        labels = np.asarray(labels, np.float32)
        if labels.shape != (len(first),) or len(first) != len(second):
            raise ValueError(
                f"expected one label a pair, got labels {labels.shape} for {len(first)} first and {len(second)} second"
            )
        given = labels[~np.isnan(labels)]
        fine = (given >= 0) & (given <= 1) if soft else np.isin(given, (FIRST, EQUAL, SECOND))
        if not fine.all():
            wanted = "a probability from 0 to 1" if soft else "0, 0.5, 1 or NaN (skip)"
            raise ValueError(f"expected each label to be {wanted}, got {given[~fine][0]:g}")
        if not (first.mask.any(1).all() and second.mask.any(1).all()):
            raise ValueError("expected segments of at least one step")
        kept = ~np.isnan(labels)
        sides = [first.inputs, second.inputs]
        for side, block in zip((first, second), sides, strict=True):
            if not np.isfinite(block).all():
                row = int(np.flatnonzero(~np.isfinite(block).all(axis=(1, 2)))[0])
                raise ValueError(f"expected finite states and actions, got NaN or inf in {side.spans[row]}")
        masks = np.stack([first.mask, second.mask], axis=1)
        new = {"inputs": np.stack(sides, axis=1)[kept], "mask": masks[kept], "labels": labels[kept]}
        if self._blocks and new["inputs"].shape[1:] != self.inputs.shape[1:]:
            raise ValueError(
                f"expected segments like those that are kept, {self.inputs.shape[1:]}, got {new['inputs'].shape[1:]}"
            )
        self._blocks = {
            name: np.concatenate([self._blocks.get(name, block[:0]), block])[-self.capacity :]
            for name, block in new.items()
        }
        return int(kept.sum())

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The pairs as a JSON document and tensors."""
        tensors = {name: torch.from_numpy(block) for name, block in self._blocks.items()}
        return {"format": FORMAT, "capacity": self.capacity}, tensors

    @classmethod
    def unpack(cls, document: dict[str, Any], tensors: dict[str, Tensor], where: str | Path) -> PreferenceBuffer:
        """The inverse of `pack`; `where` is named in errors."""
        buffer = cls(_Saved.parse(document, where).capacity)
        if tensors:  # nothing was added yet without them
            pairs = check_tensors(tensors, _TABLE, where)["N"]
            if pairs > buffer.capacity:
                raise CheckpointError(f"{where}: expected at most {buffer.capacity} pairs, got {pairs}")
            if not tensors["mask"].any(2).all():
                raise CheckpointError(f"{where}: mask: expected segments of at least one step")
        buffer._blocks = {name: tensor.numpy() for name, tensor in tensors.items()}
        return buffer
