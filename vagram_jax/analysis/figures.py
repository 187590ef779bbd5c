"""The style that all figures share: size, colors, names, labels, lines and PNG bytes.

matplotlib is imported inside the functions and used through its object interface, so
that it keeps no global state and opens no window. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vagram_jax.analysis.stats import Values
from vagram_jax.storage import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 9.0  # inches: text of size 11 is readable when the figure is 900 pixels wide
_DPI = 200

# The display name and the color of each known method. The methods that are compared
# most have the colors of Okabe and Ito, which color-blind readers can distinguish.
_METHODS = {
    "vagram": ("VaGraM", "#0072B2"),
    "vagram_mixed": ("VaGraM with squared error", "#56B4E9"),
    "vagram_nll": ("VaGraM with Gaussian likelihood", "#332288"),
    "vagram_unbounded": ("Unbounded VaGraM", "#882255"),
    "mle": ("MLE", "#D55E00"),
    "mle_raw": ("MLE with raw targets", "#E69F00"),
    "mse": ("MSE", "#117733"),
    "mse_raw": ("MSE with raw targets", "#117733"),
    "mse_normalized": ("MSE with normalized targets", "#009E73"),
    "sac": ("SAC", "#000000"),
    "none": ("SAC", "#000000"),
    "vaml": ("VAML", "#CC79A7"),
    "calibrated_vaml": ("Calibrated VAML", "#AA4499"),
    "muzero": ("MuZero", "#999933"),
    "value_equivalence": ("Value equivalence", "#661100"),
}
# The colors of all other methods.
_OTHER_COLORS = ("#6699CC", "#AA4466", "#44AA99", "#888888", "#AA7744", "#7755AA")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")

LOG_SPAN = 30.0
"""Axes and color scales are logarithmic if the values span more than this factor."""

GRAY = "0.35"
"""The color of notes."""


def color(method: str) -> str:
    """Returns the color of a method, the same in every figure.

    Args:
      method: its name, such as "vagram". An unknown name gets one of six other colors,
        which depends on the name alone.
    """
    if method in _METHODS:
        return _METHODS[method][1]
    return _OTHER_COLORS[zlib.crc32(method.encode()) % len(_OTHER_COLORS)]


def display_name(method: str) -> str:
    """Returns the name of a method for figures and sentences: "VaGraM" for "vagram".

    An unknown name is returned unchanged.
    """
    return _METHODS[method][0] if method in _METHODS else method


def styles(
    names: Iterable[str], methods: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Returns matplotlib's `plot` options for each line of one figure.

    The color depends on the method alone. Lines with the same color have different
    line styles, and the marker depends on the position in `names`.

    Args:
      names: of the lines.
      methods: name of a line to its method; a name that it lacks is itself a method.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        own = color((methods or {}).get(name, name))
        repeats = sum(s["color"] == own for s in chosen.values())
        chosen[name] = {
            "color": own,
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _LINES[repeats % len(_LINES)],
        }
    return chosen


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the common width and of `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """Writes a figure as PNG, unless `path` is None, and returns it.

    Raises:
      ResultsError: `path` can't be written.
    """
    if path is not None:
        files.write_bytes(path, png(figure))
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file without date and version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def set_labels(
    axes: Axes, title: str, x_label: str, y_label: str, note: str = ""
) -> None:
    """Sets the title and the axis labels, with `note` in gray below the title."""
    axes.set_title(
        escape(title),
        loc="left",
        fontsize=12,
        fontweight="bold",
        pad=20 if note else None,
    )
    if note:
        axes.annotate(
            escape(note),
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=10,
            color=GRAY,
        )
    axes.set_xlabel(escape(x_label), fontsize=11)
    axes.set_ylabel(escape(y_label), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Axes, title: str) -> None:
    """Adds the legend below the axes, where it covers no line."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]), default=0)
    axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
        ncols=3 if longest < 26 else 2 if longest < 48 else 1,
        frameon=False,
        alignment="left",
    )


def add_common_legend(figure: Figure, all_axes: Iterable[Axes], num_used: int) -> None:
    """Adds one legend for all panels below the figure and hides unused panels."""
    entries: dict[str, Any] = {}
    for index, axes in enumerate(all_axes):
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
        axes.set_visible(index < num_used)
    longest = max(map(len, entries), default=0)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=4 if longest < 18 else 2 if longest < 48 else 1,
        frameon=False,
    )


def use_engineering_ticks(axes: Axes) -> None:
    """Shows 10000 as 10k on the x axis."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def escape(text: str) -> str:
    """Escapes dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def draw_band(
    axes: Axes,
    x: Values,
    intervals: Any,
    label: str,
    style: dict[str, Any],
    *,
    num_markers: int,
    is_step: bool = False,
) -> None:
    """Draws one line with the band of its intervals.

    Args:
      axes: the axes to draw on.
      x: `[T]`.
      intervals: `[T, 3]`: value, low, high.
      label: the entry in the legend.
      style: one of `styles`.
      num_markers: the approximate number of markers on the line.
      is_step: whether the line keeps its height until the next x.
    """
    step, drawstyle = ("post", "steps-post") if is_step else (None, "default")
    value, low, high = np.asarray(intervals, dtype=float).T
    fill = {"color": style["color"], "alpha": 0.14, "linewidth": 0}
    axes.fill_between(x, low, high, step=step, **fill)
    edge = {"color": style["color"], "alpha": 0.45, "linewidth": 0.8}
    for end in (low, high):
        axes.plot(x, end, drawstyle=drawstyle, **edge)
    marker = {"markevery": max(1, len(x) // num_markers), "markersize": 5}
    axes.plot(x, value, label=escape(label), drawstyle=drawstyle, **marker, **style)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
