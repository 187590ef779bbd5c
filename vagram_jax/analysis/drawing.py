"""What all pictures share: size, colours, labels, a line with its band, the PNG.

matplotlib is imported where a figure is made, through its object interface: no global
state, no window, no backend that another program chose. The same figure gives the same
bytes.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from vagram_jax.storage import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, which is faint on white; told apart with
# every common colour blindness. The marker tells them apart without any colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 9.0  # inches: text of size 11 reads well when the picture is 900 pixels wide
_DPI = 200

LOG_SPAN = 30.0
"""Wider than this, a linear axis or colour scale shows the largest values alone."""

SOFT = "0.35"
"""The grey of what stands beside the point."""


def new_figure(height: float) -> Figure:
    """An empty figure of the width that all have.

    Args:
      height: in inches.

    Returns:
      The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """The figure, written where a path is given.

    Args:
      figure: what was drawn.
      path: where to write the PNG, if anywhere.

    Returns:
      The figure.

    Raises:
      ResultsError: `path` can't be written.
    """
    if path is not None:
        files.write_bytes(path, png(figure))
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, the same for the same figure.

    Args:
      figure: any matplotlib figure.

    Returns:
      The file's content, without a date or a version in it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def style(index: int) -> dict[str, Any]:
    """Colour, marker and kind of the line of the how-manieth rival.

    Args:
      index: from 0.

    Returns:
      Options of matplotlib's `plot`.
    """
    turn = index // len(_COLOURS)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": ("-", "--", ":")[turn % 3],
    }


def engineering():
    """A formatter that writes 10000 as 10k.

    Returns:
      What matplotlib's axes take.
    """
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def label(axes: Axes, title: str, x_label: str, y_label: str, note: str = "") -> None:
    """Title and labels, in the sizes that all pictures have.

    Args:
      axes: what is labelled.
      title: over it.
      x_label: below it, with a unit.
      y_label: beside it, with a unit.
      note: a line between title and picture, if any.
    """
    axes.set_title(
        plain(title),
        loc="left",
        fontsize=12,
        fontweight="bold",
        pad=20 if note else None,
    )
    if note:
        above = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(note, (0, 1), (0, 6), fontsize=10, color=SOFT, **above)
    axes.set_xlabel(plain(x_label), fontsize=11)
    axes.set_ylabel(plain(y_label), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Axes, title: str) -> None:
    """The names of the lines, below the picture, where they hide nothing.

    Args:
      axes: whose lines have labels.
      title: what a line and its band are.
    """
    longest = max(map(len, axes.get_legend_handles_labels()[1]), default=0)
    axes.legend(
        title=title,
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
        ncols=3 if longest < 26 else 2 if longest < 48 else 1,
        frameon=False,
        alignment="left",
    )


def plain(text: str) -> str:
    """Text as it stands: a pair of dollar signs would be typeset as mathematics.

    Args:
      text: a name.

    Returns:
      The text for matplotlib.
    """
    return text.replace("$", r"\$")


def line(axes: Axes, xs, found, name: str, style, *, marks: int, steps=False) -> None:
    """One line with its band.

    Args:
      axes: where.
      xs: `[T]`.
      found: `[T, 3]`: value, low, high.
      name: in the legend.
      style: from `style`.
      marks: about how many markers.
      steps: whether it keeps its height up to the next x.
    """
    band, kind = ("post", "steps-post") if steps else (None, "default")
    value, low, high = np.asarray(found, dtype=float).T
    every = max(1, len(xs) // marks)
    soft = {"color": style["color"], "alpha": 0.14, "linewidth": 0}
    axes.fill_between(xs, low, high, step=band, **soft)
    edge = {"color": style["color"], "alpha": 0.45, "linewidth": 0.8}
    for end in (low, high):
        axes.plot(xs, end, drawstyle=kind, **edge)
    marked = {"markevery": every, "markersize": 5, **style}
    axes.plot(xs, value, label=plain(name), drawstyle=kind, **marked)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def span(counts: set[int]) -> str:
    """Numbers as text: one, or from the lowest to the highest.

    Args:
      counts: at least one number.

    Returns:
      As `4` or `3 to 5`.
    """
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
