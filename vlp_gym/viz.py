"""Plots: reward curves over a rollout, training and learning curves, evaluation results, attention maps.

Figures have their own canvas, so matplotlib's backend, windows and global settings stay untouched. Every function
raises MissingExtraError without matplotlib.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlp_gym.figures import COLOURS, GREY, INK, figure_file, fitting_legend, marker, matplotlib_package, show_at_least

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_HEIGHT = 4.0  # inches of a strip of frames


def plot_reward_curves(
    curves: Mapping[str, ArrayLike],
    path: str | Path,
    *,
    title: str = "",
    xlabel: str = "environment step",
    ylabel: str = "reward",
    steps: Mapping[str, ArrayLike] | None = None,
    frames: Mapping[str, NDArray[np.uint8]] | None = None,
    dashed: Sequence[str] = (),
    num_shown: int = 7,
    reward_range: tuple[float, float] | None = None,
) -> None:
    """Plot reward curves over time, with a strip of frames below for each video.

    Args:
        curves: label -> rewards, float ``[F]``.
        path: file to write (.png, .pdf or .svg), replaced atomically.
        title: text above the figure.
        xlabel: text at the horizontal axis.
        ylabel: text at the vertical axis.
        steps: label -> position of each reward, float ``[F]``; the index by default.
        frames: label -> video, uint8 ``[F, H, W, 3]``; its strip has the colour of the curve with that label.
        dashed: labels of dashed curves; their colours start from the first one again, so that "expert" and
            "expert, wrong sentence" match if they are in the same order.
        num_shown: frames per strip.
        reward_range: the vertical axis shows at least this; None fits it to the curves.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    strips, width = dict(frames or {}), 7.2
    first_strip = next(iter(strips.values()), np.zeros((1, 1, 1, 3), np.uint8))
    strip_height = _strip_height(first_strip, num_shown, width * 0.97)
    height = 2.9 + len(strips) * (strip_height + 0.06) + (0.25 if strips else 0.0)
    with figure_file(width, height, path, title=title) as figure:
        figure.get_layout_engine().set(hspace=0.0, h_pad=0.03)
        grid = figure.add_gridspec(1 + len(strips), 1, height_ratios=[2.9, *[strip_height] * len(strips)])
        axes = figure.add_subplot(grid[0])
        colour = _paired_colours(list(curves), dashed)
        for label, curve in curves.items():
            x = np.arange(len(np.asarray(curve))) if steps is None else np.asarray(steps[label])
            style: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4} if label in dashed else {}
            axes.plot(x, np.asarray(curve), color=colour[label], label=label, **marker(curve), **style)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(x=0.01)
        show_at_least(axes, reward_range)
        if len(curves) > 1:
            handles, columns = _legend_rows(axes, dashed)
            fitting_legend(axes, handles, columns, loc="lower left", bbox_to_anchor=(-0.01, 1.0), handlelength=2.0)
        for row, (label, video) in enumerate(strips.items(), start=1):
            strip = figure.add_subplot(grid[row])
            _strip(strip, video, num_shown, colour.get(label, INK), label)


def plot_training(history: Sequence[Mapping[str, float]], path: str | Path, *, title: str = "") -> None:
    """Plot every logged quantity against the step: one panel per group, faint raw values, smoothed lines.

    Args:
        history: rows with a "step" and any floats; "loss/itp" and "loss/ivp" share the panel "loss". A quantity
            may be missing from a row.
        path: file to write, replaced atomically.
        title: title of the figure.

    Raises:
        ValueError: no row has a quantity.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in history:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)) and np.isfinite(value):
                group, _, rest = name.partition("/")
                series[group][rest or group].append((row["step"], value))
    if not series:
        raise ValueError("history: expected rows with a step and at least one quantity, got none")
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    with figure_file(0.4 + 3.1 * columns, 0.3 + 2.3 * rows, path, title=title) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (group, quantities) in zip(panels, series.items(), strict=False):
            for colour, (name, points) in zip(cycle(COLOURS), quantities.items(), strict=False):
                x, y = np.asarray(points, dtype=np.float64).T
                if len(x) > 20:
                    axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
                axes.plot(x, _smooth(y), color=colour, label=name, **marker(y))
            name = group if len(quantities) > 1 or group in quantities else f"{group} {next(iter(quantities))}"
            axes.set(title=name.replace("_", " "), xlabel="step")
            axes.margins(x=0.01)
            if len(quantities) > 1:
                handles = axes.get_legend_handles_labels()[0]
                fitting_legend(
                    axes, handles, [2, 1] if len(handles) > 4 else [1], width=2.4, handlelength=1.2, columnspacing=1.0
                )
        for axes in panels[len(series) :]:
            axes.set_axis_off()


def plot_learning_curve(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: str | Path,
    *,
    title: str = "",
    quantities: Mapping[str, str] | None = None,
    xlabel: str = "environment steps",
    reward_range: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """Plot success and reward against environment steps: the mean over seeds and the range from worst to best.

    Args:
        runs: label -> one history per seed, each a list of evaluation rows with "step" and the quantities.
        path: file to write, replaced atomically.
        title: text above the figure.
        xlabel: text at the horizontal axes.
        quantities: key in the rows -> title of its panel; "success" and "reward" by default. Missing ones are skipped.
        reward_range: the axis of "reward" shows at least this: (0, 1) for the reward "progress", so that a curve that
            never leaves 0 looks like one; None fits it to the data, for "delta" and "potential".

    Raises:
        ValueError: no row has one of the quantities.
    """
    wanted = quantities or {"success": "success rate", "reward": "reward of the model (mean a step)"}
    rows = [row for histories in runs.values() for history in histories for row in history]
    panels = {key: name for key, name in wanted.items() if any(key in row for row in rows)}
    if not panels:
        raise ValueError(f"runs: expected rows with one of {', '.join(wanted)}, got none")
    with figure_file(0.4 + 3.4 * len(panels), 2.8, path, title=title) as figure:
        for axes, (key, name) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for (label, histories), colour in zip(runs.items(), cycle(COLOURS), strict=False):
                x, curves = _align(histories, key)
                if len(x) == 0:
                    continue
                seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
                axes.plot(x, curves.mean(axis=0), color=colour, label=label + seeds, **marker(curves.mean(axis=0)))
                if len(curves) > 1:
                    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            axes.set(title=name, xlabel=xlabel)
            axes.xaxis.set_major_formatter(_thousands)
            axes.margins(x=0.01)
            shares = key.startswith(("success", "label_accuracy"))
            show_at_least(axes, (0.0, 1.0) if shares else reward_range if key == "reward" else None)
        if len(runs) > 1 or any(len(h) > 1 for h in runs.values()):
            lines: dict[str, Any] = {}
            for axes in figure.axes:  # a run may have no rows for one of the panels
                handles, labels = axes.get_legend_handles_labels()
                lines |= dict(zip(labels, handles, strict=True))
            fitting_legend(figure, list(lines.values()), [3, 2, 1], loc="outside lower center")


def plot_evaluation(
    result: Mapping[str, Any], figures: Mapping[str, Mapping[str, str]], path: str | Path, *, title: str = ""
) -> None:
    """Plot an evaluation: a bar for the mean over tasks and a dot per task, one panel per group.

    Args:
        result: return value of `vlp_gym.evaluation.evaluate.evaluate`.
        figures: group -> name in the result -> title.
        path: file to write, replaced atomically.
        title: title of the figure; the model's name and the split by default.
    """
    shown = {
        group: {name: text for name, text in names.items() if result["mean"].get(name) is not None}
        for group, names in figures.items()
    }
    shown = {group: names for group, names in shown.items() if names}
    tasks = result["tasks"]
    named = len(tasks) <= len(COLOURS)
    count = sum(map(len, shown.values()))
    heading = title or f"{result['settings']['model']} on {result['split']}"
    with figure_file(8.0, 1.0 + 0.24 * count + 0.35 * len(shown), path, title=heading) as figure:
        heights = [len(names) + 0.5 for names in shown.values()]
        panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (group, names) in zip(panels, shown.items(), strict=True):
            y = np.arange(len(names))
            axes.barh(y, [result["mean"][name] for name in names], height=0.62, color="#C9D7E3")
            for k, task in enumerate(tasks):
                values = [result["per_task"][task][name] for name in names]
                points = np.array([[v, row] for row, v in enumerate(values) if v is not None]).reshape(-1, 2)
                colour = COLOURS[k] if named else COLOURS[0]
                axes.scatter(*points.T, s=14 if named else 6, color=colour, linewidth=0, label=task.removesuffix("-v3"))
            for row, name in enumerate(names):
                place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
                axes.annotate(f"{result['mean'][name]:.2f}", (1.01, row), fontsize=8.5, **place)
            axes.axvline(0.0, color=GREY, linewidth=0.8)
            axes.set_yticks(y, list(names.values()))
            axes.set(title=group, ylim=(len(names) - 0.4, -0.6))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False, axis="y")
        if named:
            handles = panels[0].get_legend_handles_labels()[0]
            fitting_legend(figure, handles, [5, 4, 3, 2, 1], loc="outside lower center", handletextpad=0.2)


def plot_examples(videos: Mapping[str, NDArray[np.uint8]], path: str | Path) -> None:
    """Draw a strip of frames for each task.

    Args:
        videos: label -> a few frames, uint8 ``[F, H, W, 3]``.
        path: ``.png``, ``.pdf`` or ``.svg``, replaced atomically.
    """
    width, heights = 7.2, [_strip_height(video, len(video), 7.0) + 0.25 for video in videos.values()]
    with figure_file(width, sum(heights) + 0.1, path) as figure:
        rows = figure.subplots(len(videos), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, (label, video) in zip(rows, videos.items(), strict=True):
            _strip(axes, video, len(video), INK, "")
            axes.set_title(textwrap.shorten(label, 100))


def plot_attention(
    frames: NDArray[np.uint8], maps: Mapping[str, NDArray[np.float64]], path: str | Path, *, title: str = ""
) -> None:
    """Draw frames, and below them for each part of a sentence where it looks (VLP, figure 4).

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        maps: part of the sentence -> its map in each frame, float ``[T, h, w]``; see `attention_overlay`.
        path: ``.png``, ``.pdf`` or ``.svg``, replaced atomically.
        title: title of the figure.
    """
    rows = {"": frames} | {
        part: np.stack([attention_overlay(frame, each) for frame, each in zip(frames, shown, strict=True)])
        for part, shown in maps.items()
    }
    height = _strip_height(frames, len(frames), 7.0) + 0.25
    with figure_file(7.2, height * len(rows) + 0.4 * bool(title), path, title=title) as figure:
        places = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, (part, video) in zip(places, rows.items(), strict=True):
            _strip(axes, video, len(video), INK, "")
            axes.set_title(textwrap.shorten(part, 100), fontsize=9)


def attention_overlay(frame: NDArray[np.uint8], attention: ArrayLike, *, opacity: float = 0.6) -> NDArray[np.uint8]:
    """Overlay an attention map on a frame: the frame in grey, the map in colour where it is strong.

    Args:
        frame: uint8 ``[H, W, 3]``.
        attention: non-negative weights, float ``[h, w]`` of any size; scaled to maximum 1.
        opacity: opacity of the colour at the maximum, in [0, 1].

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        ValueError: the map is not a finite matrix.
    """
    weights = np.asarray(attention, dtype=np.float64)
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise ValueError(f"attention: expected a finite [h, w] matrix, got shape {weights.shape}")
    colormaps = matplotlib_package().colormaps
    weights = _bilinear(weights - min(0.0, float(weights.min())), frame.shape[0], frame.shape[1])
    weights = weights / weights.max() if weights.max() > 0 else weights
    grey = (frame.astype(np.float64) @ [0.299, 0.587, 0.114])[..., None] * np.ones(3)
    colour = colormaps["inferno"](0.25 + 0.75 * weights)[..., :3] * 255.0
    alpha = (opacity * weights)[..., None]
    return np.clip(grey * (1 - alpha) + colour * alpha, 0, 255).round().astype(np.uint8)


def _paired_colours(labels: Sequence[str], dashed: Sequence[str]) -> dict[str, str]:
    solid = [label for label in labels if label not in dashed]
    other = [label for label in labels if label in dashed]
    return {label: colour for group in (solid, other) for label, colour in zip(group, cycle(COLOURS), strict=False)}


def _legend_rows(axes: Axes, dashed: Sequence[str]) -> tuple[list[Any], list[int]]:
    """Handles, each dashed curve below its solid one, and the numbers of columns for which that holds."""
    handles, labels = axes.get_legend_handles_labels()
    solid = [handle for handle, label in zip(handles, labels, strict=True) if label not in dashed]
    other = [handle for handle in handles if handle not in solid]
    if len(solid) != len(other):
        return handles, [4, 3, 2, 1]
    pairs = [handle for pair in zip(solid, other, strict=True) for handle in pair]
    return pairs, [columns for columns in range(len(solid), 0, -1) if len(solid) % columns == 0]


def _strip_height(video: NDArray[np.uint8], count: int, width: float) -> float:
    """Height of a strip of so many frames, in inches like its width; the frames of a tall video are drawn smaller."""
    return min(width * video.shape[1] / (video.shape[2] * count), MOST_HEIGHT)


def _strip(axes: Axes, video: NDArray[np.uint8], count: int, colour: str, label: str) -> None:
    chosen = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
    gap = np.full((video.shape[1], max(1, video.shape[2] // 28), 3), 255, np.uint8)
    picture = np.concatenate([part for frame in chosen for part in (frame, gap)][:-1], axis=1)
    axes.imshow(picture, interpolation="lanczos", aspect="equal", extent=(0, picture.shape[1], picture.shape[0], 0))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(label, color=colour, fontweight="bold", fontsize=8.5)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over 1/20 of the points; the window shrinks at the ends."""
    half = len(y) // 40
    total = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def _align(
    histories: Sequence[Sequence[Mapping[str, float]]], key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps ``[E]`` and values ``[S, E]``, interpolated at those steps of the first seed that all seeds reached."""
    curves = [[(row["step"], row[key]) for row in history if key in row] for history in histories]
    arrays = [np.asarray(curve, dtype=np.float64) for curve in curves if curve]
    if not arrays:
        return np.zeros(0), np.zeros((0, 0))
    last = min(array[-1, 0] for array in arrays)
    x = arrays[0][arrays[0][:, 0] <= last, 0]
    return x, np.stack([np.interp(x, array[:, 0], array[:, 1]) for array in arrays])


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _bilinear(image: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Resize a matrix, sampling at pixel centres."""
    for size in (height, width):  # one axis, then the other; two transposes cancel
        old = image.shape[0]
        at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), max(old - 2, 0))
        part = (at - low)[:, None]
        image = (image[low] * (1 - part) + image[np.minimum(low + 1, old - 1)] * part).T
    return image
