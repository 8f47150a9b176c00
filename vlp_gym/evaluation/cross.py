"""Does a model listen? The VOC of every task's videos under every task's sentence (GVL, figures 16 and 17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def cross_matrix(rows: Sequence[Mapping[str, Any]], tasks: Mapping[str, str]) -> NDArray[np.float64]:
    """Mean VOC, float64 ``[N, N]``: a row for the videos of each task, a column for each sentence.

    Args:
        rows: what `score_dataset` says of every video under every sentence.
        tasks: N tasks and their sentences.
    """
    return np.array(
        [
            [
                np.mean([row["voc"] for row in rows if row["task"] == task and row["instruction"] == sentence])
                for sentence in tasks.values()
            ]
            for task in tasks
        ]
    )


def right_is_highest(matrix: NDArray[np.float64]) -> int:
    """For how many tasks the VOC of their videos is highest under their own sentence, and under no other as high.

    >>> right_is_highest(np.array([[0.9, 0.1], [0.5, 0.5]]))
    1
    """
    others = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix).max(1)
    return int((np.diag(matrix) > others).sum())


def markdown(matrix: NDArray[np.float64], tasks: Sequence[str]) -> str:
    """The matrix as a table, and how often the right sentence is the highest."""
    names = [task.removesuffix("-v3") for task in tasks]
    lines = [f"| videos of / sentence of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{v:.2f}' for v in row)} |" for name, row in zip(names, matrix, strict=True)]
    lines += ["", f"the right sentence has the highest VOC for {right_is_highest(matrix)} of {len(names)} tasks"]
    return "\n".join(lines)


def plot_cross(matrix: NDArray[np.float64], tasks: Sequence[str], path: str | Path, *, title: str = "") -> None:
    """Draw the matrix."""
    from vlp_gym.figures import figure_file

    names = [task.removesuffix("-v3") for task in tasks]
    side = 2.5 + 0.42 * len(names)
    with figure_file(side + 0.6, side, path, title=title) as figure:
        axes = figure.subplots()
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="sentence", ylabel="videos")
        axes.grid(visible=False)
        for row, column in np.ndindex(matrix.shape):
            shade = "white" if abs(matrix[row, column]) > 0.6 else "black"
            axes.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color=shade, fontsize=7.5)
        figure.colorbar(image, label="VOC", shrink=0.8)
