"""Draws the state of studies and their learning curves with characters, using rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vagram_jax.analysis import figures, grouping, summary
from vagram_jax.cli import flags, status
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from rich.text import Text

_HEIGHT, _MAX_WIDTH = 14, 100  # of a chart, in characters
_MARGIN = 10  # of the labels of its y axis
# The dots of a braille character by row and column, as bits of its code point.
_DOTS = np.array([[1, 8], [2, 16], [4, 32], [64, 128]])
_BRAILLE = 0x2800


def draw(
    studies: Sequence[status.StudyStatus], curves: Sequence[Sequence[Run]]
) -> None:
    """Draws a table and charts for each study.

    Args:
      studies: the studies.
      curves: for each study its runs with learning curves.

    Raises:
      UsageError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise flags.UsageError(
            f'--terminal: {error}; pip install "vagram_jax[terminal]"'
        ) from error
    console = Console(highlight=False)
    if console.is_terminal:
        console.clear()
    for study, runs in zip(studies, curves, strict=True):
        table = Table(*status.HEADER, box=None, pad_edge=False)
        for row in study.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        floors = summary.floor_per_env(runs)
        for env, floor in sorted(floors.items()):
            lines = {}
            for run in runs:
                if summary.env_of(run) == env:
                    curve = summary.curves(run.metrics, floor=floor, resamples=1)
                    lines[run.name] = curve.env_steps, curve.value
            width = min(console.width, _MAX_WIDTH) - _MARGIN
            picture = chart(lines, width, grouping.methods(runs))
            console.print(Text(f"\n{env}: return"), picture, sep="\n")


def chart(
    lines: Mapping[str, tuple[Any, Any]], width: int, methods: Mapping[str, str]
) -> Text:
    """Returns a chart with a line per run, in the colors of the figures.

    Args:
      lines: names of runs to x `[T]` and y `[T]`; what isn't finite is left out.
      width: of the chart without its margin, in characters.
      methods: names of runs to their methods, which decide the colors.

    Returns:
      The chart with its axes and a legend.
    """
    from rich.text import Text

    finite = {n: _finite(*points) for n, points in lines.items()}
    finite = {name: points for name, points in finite.items() if len(points[0])}
    if not finite:
        return Text("no finite return yet")
    xs, ys = (np.concatenate(each) for each in zip(*finite.values(), strict=True))
    ends = ((xs.min(), xs.max()), (ys.min(), ys.max()))
    cells = np.zeros((_HEIGHT, width), int)
    owners = np.full((_HEIGHT, width), "", object)
    for name, points in finite.items():
        own = _cells(points, ends, width)
        cells |= own
        owners[own > 0] = figures.color(methods[name])
    text = Text()
    for row in range(_HEIGHT):
        label = {0: ends[1][1], _HEIGHT - 1: ends[1][0]}.get(row)
        shown = "" if label is None else summary.format_number(label)
        text.append(f"{shown:>{_MARGIN - 2}} ")
        text.append("┤" if shown else "│")
        for code, color in zip(cells[row], owners[row], strict=True):
            text.append(chr(_BRAILLE + code), style=color)
        text.append("\n")
    low, high = (f"{x:.0f}" for x in ends[0])
    text.append(f"{' ' * _MARGIN}{low}{f'{high} steps':>{width - len(low)}}\n")
    for name in finite:
        text.append("  ── ", style=figures.color(methods[name]))
        text.append(figures.display_name(name))
    return text.append("\n")


def _finite(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def _cells(points, ends, width: int) -> np.ndarray:
    """The braille codes `[_HEIGHT, width]` of a line through points."""
    size = (2 * width - 1, 4 * _HEIGHT - 1)  # the last dot in each direction
    shown = np.linspace(0, len(points[0]) - 1, min(len(points[0]), size[0])).astype(int)
    points = [values[shown] for values in points]
    # So many points that neighbors are at most a dot apart.
    t = np.linspace(0, len(points[0]) - 1, 4 * sum(size) * len(points[0]))
    dots = []
    for values, (low, high), last in zip(points, ends, size, strict=True):
        share = np.full(values.shape, 0.5)
        if high > low:  # halved, so that no difference overflows
            share = (values / 2 - low / 2) / (high / 2 - low / 2)
        at = np.interp(t, np.arange(len(values)), share * last)
        dots.append(np.round(at).astype(int))
    column, row = dots[0], size[1] - dots[1]
    codes = np.zeros((_HEIGHT, width), int)
    np.bitwise_or.at(codes, (row // 4, column // 2), _DOTS[row % 4, column % 2])
    return codes
