"""Figures in this package's style: their canvas, file, legend and axes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from vlp_gym.errors import import_extra
from vlp_gym.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, GREY, FAINT = "#222222", "#777777", "#E3E3E3"
DPI = 160

_STYLE = {
    "text.parse_math": False,  # a sentence may hold two $
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def matplotlib_package() -> Any:
    return import_extra("matplotlib", "drawing needs matplotlib", "viz")


def new_figure(width: float, height: float, *, dpi: int = DPI) -> Figure:
    """Make a figure with an Agg canvas, sizes in inches; draw on it within ``style()``."""
    matplotlib_package()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style() -> Any:
    """Context in which new axes have this package's style."""
    return matplotlib_package().rc_context(_STYLE)


@contextmanager
def figure_file(width: float, height: float, path: str | Path, *, title: str = "") -> Iterator[Any]:
    """Context of a figure in this package's style, sizes in inches; written to `path` unless the block raises."""
    path = Path(path)
    with style():
        figure = new_figure(width, height)
        yield figure
        if title:
            # Not wrap=True, which takes $ for mathematics.
            figure.suptitle(textwrap.fill(title, int(11 * width)), x=0.01, ha="left", fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:] or "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def marker(values: ArrayLike) -> dict[str, Any]:
    """Options of a line for values ``[N]``: those without a finite neighbour are invisible without a marker.

    >>> marker([0.5]), marker([0.1, 0.2, float("nan"), 0.4]), marker([0.1, 0.2])
    ({'marker': 'o', 'markevery': [0]}, {'marker': 'o', 'markevery': [3]}, {})
    """
    finite = np.pad(np.isfinite(np.asarray(values, np.float64)), 1)
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    return {"marker": "o", "markevery": alone} if alone else {}


def show_at_least(axes: Axes, values: tuple[float, float] | None) -> None:
    """Widen the vertical axis; it then does not fit itself to a curve that is as good as 0."""
    if values is not None and np.isfinite(values).all():
        margin = 0.03 * (values[1] - values[0])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, values[0] - margin), max(high, values[1] + margin))


def fitting_legend(
    owner: Any, handles: Sequence[Any], columns: Sequence[int], *, width: float | None = None, **options: Any
) -> None:
    """Draw the legend with the first number of columns that fits into a width in inches; None: the figure's.

    Long labels are wrapped. A figure grows by what the legend needs beyond one row, unless a width is given.
    """
    figure = owner.get_figure() or owner
    room = figure.get_figwidth() - 0.4 if width is None else width
    labels = [textwrap.fill(handle.get_label(), int(12 * room)) for handle in handles]
    for number in columns:
        legend = owner.legend(list(handles), labels, ncols=min(number, len(labels)), **options)
        size = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        if size.width <= room or number == columns[-1]:
            break
        legend.remove()
    if width is None:
        figure.set_figheight(figure.get_figheight() + max(0.0, size.height - 0.25))
