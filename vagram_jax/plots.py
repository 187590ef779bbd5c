"""Pictures from results.

Comes in: `Run`s, or named numbers. Goes out: a matplotlib figure, and a PNG where a
path is given. matplotlib is imported where a figure is made, through its object
interface: no global state, no window, no backend that another program chose. The same
results give the same bytes.
"""

from __future__ import annotations

import io
import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vagram_jax import files, stats
from vagram_jax.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours without the yellow, which is faint on white; told apart with
# every common colour blindness. The marker tells them apart without any colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH = 9.0  # inches: text of size 11 reads well when the picture is 900 pixels wide
_DPI = 200
# Wider than this, a linear axis or colour scale shows the largest values alone.
_LOG_SPAN = 30.0
_MAX_CELLS_WITH_TEXT = 16
_MAX_LABEL_CHARACTERS = 80  # side by side below a map
_SOFT = "0.35"

# What a map shows and how to read it, by the name of its columns.
_MAPS = {
    "attention": (
        "share of the loss on each state dimension",
        "curvature of the loss in the prediction x variance of the change; sums to 1",
    ),
    "error": (
        "model error, in standard deviations of the change",
        "on hold-out rows; 1 is as bad as predicting the mean change",
    ),
}
_LAST = 0.25  # the share of a seed's model fits that a map averages
_MEANS = "Mean over seeds, for each seed over the last quarter of its model fits."


def learning_curves(
    runs: Sequence[Run],
    path: str | os.PathLike | None = None,
    *,
    resamples: int = 2000,
) -> Figure:
    """Return against environment steps: IQM and 95% interval, one line per run.

    A cross marks where a seed diverged; from there on it counts with the lowest return
    of the environment. One panel per environment.

    Args:
      runs: each with at least one evaluation.
      path: where to write the PNG, if anywhere.
      resamples: of the bootstrap at each step.

    Returns:
      The figure.

    Raises:
      ValueError: a run without evaluations or with several environments.
      ResultsError: `path` can't be written.
    """
    floors = stats.floor_per_env(runs)
    figure = _figure(height=(4.4 + 0.13 * len(runs)) * len(floors) + 0.5)
    panels = figure.subplots(len(floors), 1, squeeze=False)[:, 0]
    for axes, (env, floor) in zip(panels, sorted(floors.items()), strict=True):
        members = [run for run in runs if stats.env_of(run) == env]
        for index, run in enumerate(members):
            _draw_curve(axes, run, floor, _style(index), resamples)
        _label(axes, env, "environment steps", "return")
        axes.xaxis.set_major_formatter(_engineering())
        axes.legend(
            title=_curve_legend(members, floor),
            loc="upper left",
            bbox_to_anchor=(0, -0.12),
            ncols=2 if max(len(run.name) for run in members) < 30 else 1,
            frameon=False,
            alignment="left",
        )
    return _finish(figure, path)


def attention(
    runs: Sequence[Run],
    path: str | os.PathLike | None = None,
    *,
    dim_names: Sequence[str] | None = None,
) -> Figure:
    """Which state dimensions each loss attends to, and what it pays elsewhere.

    For each environment two maps, losses by dimensions. One shows the share of the loss
    that a dimension has (`attention_dim_0`, ...): curvature of the loss in the
    prediction times variance of the change, divided by the sum over dimensions, so that
    units cancel. The other shows the model's hold-out error (`error_dim_0`, ...) in
    standard deviations of the change: 1 is as bad as predicting the mean change.

    Each seed gives the mean over the last quarter of its model fits. The maps show the
    means over the seeds that have finite numbers there; the row tells how many. The
    last dimensions are distractors where the config's `distractors` says so.

    Args:
      runs: those without a model are left out.
      path: where to write the PNG, if anywhere.
      dim_names: a name for each state dimension, in place of its number.

    Returns:
      The figure.

    Raises:
      ValueError: no run has the columns, or `dim_names` doesn't fit.
      ResultsError: `path` can't be written.
    """
    groups = _attention_groups(runs)
    rows = sum(max(2, len(members)) for members in groups.values())
    longest = max(map(len, dim_names or [""]))  # of names that stand at an angle
    figure = _figure(height=0.75 * rows + (2.4 + 0.15 * longest) * len(groups))
    grid = figure.subplots(
        2 * len(groups),
        1,
        squeeze=False,
        height_ratios=[max(2, len(m)) for m in groups.values() for _ in range(2)],
    )[:, 0]
    for index, ((env, dims), members) in enumerate(sorted(groups.items())):
        names = list(map(str, range(dims))) if dim_names is None else list(dim_names)
        if len(names) != dims:
            raise ValueError(
                f"attention: {len(names)} dim_names; {env} has {dims} state dimensions"
            )
        for axes, kind in zip(grid[2 * index :], _MAPS, strict=False):
            _draw_map(axes, members, names, kind)
            x_label = "state dimension" + _mark_distractors(axes, members, dims)
            title, meaning = _MAPS[kind]
            _label(axes, f"{env}: {title}", x_label, "", note=meaning)
    figure.supxlabel(_MEANS, x=0.01, ha="left", fontsize=10, color=_SOFT)
    return _finish(figure, path)


def sweep(
    points: Mapping[str, Mapping[float, Sequence[float]]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str,
    y_label: str = "final return",
    title: str = "",
) -> Figure:
    """The final return against a swept number: IQM and 95% interval, a line per loss.

    Args:
      points: a loss's name to the swept number to `[num_seeds]` final returns, diverged
        seeds scored, as `stats.final_returns` gives them.
      path: where to write the PNG, if anywhere.
      x_label: what is swept, with its unit.
      y_label: what the values are.
      title: over the picture.

    Returns:
      The figure.

    Raises:
      ValueError: fewer than 3 seeds at a point.
      ResultsError: `path` can't be written.
    """
    figure = _figure(height=5.0)
    axes = figure.subplots()
    for index, (name, by_x) in enumerate(points.items()):
        xs = sorted(by_x)
        found = np.array([stats.interval({name: np.asarray(by_x[x])}) for x in xs])
        counts = {len(by_x[x]) for x in xs}
        label = f"{name} ({_span(counts)} seeds)"
        _draw_line(axes, np.array(xs), found, label, _style(index), marks=len(xs))
    every_x = [x for by_x in points.values() for x in by_x]
    if every_x and min(every_x) > 0 and max(every_x) > _LOG_SPAN * min(every_x):
        axes.set_xscale("log")
    _label(axes, title, x_label, y_label)
    axes.legend(title="line: IQM, band: 95% interval", frameon=False, alignment="left")
    return _finish(figure, path)


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


def num_dims(run: Run) -> int:
    """How many state dimensions a run's `model.csv` tells of.

    Args:
      run: with or without model fits.

    Returns:
      The number, 0 without a model.
    """
    columns = run.model[0] if run.model else {}
    return max(
        sum(re.fullmatch(rf"{kind}_dim_\d+", name) is not None for name in columns)
        for kind in _MAPS
    )


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Figure, path: str | os.PathLike | None) -> Figure:
    if path is not None:
        files.write_bytes(path, png(figure))
    return figure


def _style(index: int) -> dict[str, Any]:
    turn = index // len(_COLOURS)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": ("-", "--", ":")[turn % 3],
    }


def _engineering():
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _label(axes: Axes, title: str, x_label: str, y_label: str, note: str = "") -> None:
    axes.set_title(
        _plain(title),
        loc="left",
        fontsize=12,
        fontweight="bold",
        pad=20 if note else None,
    )
    if note:
        above = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(note, (0, 1), (0, 6), fontsize=10, color=_SOFT, **above)
    axes.set_xlabel(_plain(x_label), fontsize=11)
    axes.set_ylabel(_plain(y_label), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    # A pair of dollar signs in a name would be typeset as mathematics, or fail.
    return text.replace("$", r"\$")


def _draw_line(axes, xs, found, label, style, *, marks: int) -> None:
    """One line with its band; `found` is `[T, 3]`: value, low, high."""
    value, low, high = np.asarray(found, dtype=float).T
    every = max(1, len(xs) // marks)
    axes.fill_between(xs, low, high, color=style["color"], alpha=0.14, linewidth=0)
    for end in (low, high):
        axes.plot(xs, end, color=style["color"], alpha=0.45, linewidth=0.8)
    axes.plot(xs, value, label=_plain(label), markevery=every, markersize=5, **style)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_curve(axes, run: Run, floor: float, style, resamples: int) -> None:
    curve = stats.curves(run.metrics, floor=floor, resamples=resamples)
    finals = stats.final_returns(run.metrics, floor=floor)
    label = f"{run.name}: {len(finals.seeds)} seeds, {len(finals.diverged)} diverged"
    _draw_line(axes, curve.env_steps, np.array(curve[1:]).T, label, style, marks=8)
    at = sorted(set(finals.diverged.values()))
    heights = np.interp(at, curve.env_steps, curve.value)
    axes.plot(
        at, heights, "x", color=style["color"], markersize=11, markeredgewidth=2.5
    )


def _curve_legend(members: Sequence[Run], floor: float) -> str:
    counts = {len({row["seed"] for row in run.metrics}) for run in members}
    middle = ", ".join(f"middle {n - 2 * (n // 4)} of {n}" for n in sorted(counts))
    legend = f"line: interquartile mean ({middle} seeds), band: pointwise 95% interval"
    if any(stats.final_returns(run.metrics, floor=floor).diverged for run in members):
        legend += "\ncross: a seed diverged, from there on it counts with the lowest "
        legend += f"return, {stats.format_number(floor)}"
    return legend


def _attention_groups(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """Runs by environment and number of state dimensions: a map has one width."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if dims := num_dims(run):
            env = stats.env_of(run) if run.metrics else str(run.model[0].get("env", ""))
            groups.setdefault((env, dims), []).append(run)
    if not groups:
        raise ValueError(
            "attention: no run has attention_dim_0 or error_dim_0 in model.csv"
        )
    return groups


def _per_dimension(run: Run, kind: str, dims: int) -> tuple[np.ndarray, int, int]:
    """Mean over seeds `[dims]`, how many seeds are in it, how many there are."""
    fits: dict[int, list] = {}
    for row in sorted(run.model, key=lambda row: row["env_steps"]):
        cells = [row.get(f"{kind}_dim_{d}") for d in range(dims)]
        numbers = [v if isinstance(v, int | float) else np.nan for v in cells]
        fits.setdefault(row["seed"], []).append(numbers)
    table = np.array(
        [
            np.mean(rows[-math.ceil(_LAST * len(rows)) :], axis=0, dtype=np.float64)
            for rows in fits.values()
        ]
    )
    usable = table[np.isfinite(table).all(axis=1)]
    mean = usable.mean(axis=0) if len(usable) else np.full(dims, np.nan)
    return mean, len(usable), len(table)


def _draw_map(axes, members: Sequence[Run], names: list[str], kind: str) -> None:
    found = [_per_dimension(run, kind, len(names)) for run in members]
    values = np.array([mean for mean, _, _ in found])
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        cmap="cividis",
        norm=_norm(values),
        interpolation="nearest",
    )
    axes.set_facecolor("0.85")  # what is missing is grey, not the lowest colour
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03)
    bar.ax.tick_params(labelsize=9)
    if kind == "attention":
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.hlines(np.arange(len(members))[1:] - 0.5, *axes.get_xlim(), "white", lw=1.5)
    labels = [
        textwrap.fill(run.name, 24) + f"\n{used}/{total} seeds"
        for run, (_, used, total) in zip(members, found, strict=True)
    ]
    axes.set_yticks(range(len(members)), list(map(_plain, labels)))
    shown = range(0, len(names), max(1, len(names) // 30))
    axes.set_xticks(shown, [_plain(names[d]) for d in shown])
    if max(map(len, names)) * len(shown) > _MAX_LABEL_CHARACTERS:
        axes.tick_params(axis="x", rotation=45)
    if len(names) <= _MAX_CELLS_WITH_TEXT:
        _write_cells(axes, image, values, kind)


def _norm(values: np.ndarray):
    from matplotlib.colors import LogNorm, Normalize

    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > _LOG_SPAN * positive.min():
        # More than four decades would leave the large values without contrast.
        return LogNorm(max(positive.min(), positive.max() * 1e-4), positive.max())
    return Normalize(0, positive.max() if positive.size else 1)


def _write_cells(axes, image, values: np.ndarray, kind: str) -> None:
    for (row, column), value in np.ndenumerate(values):
        text = f"{100 * value:.2g}%" if kind == "attention" else f"{value:.2g}"
        is_dark = np.mean(image.cmap(image.norm(value))[:3]) < 0.5
        axes.text(
            column,
            row,
            text if np.isfinite(value) else "none",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if is_dark and np.isfinite(value) else "black",
        )


def _mark_distractors(axes: Axes, members: Sequence[Run], dims: int) -> str:
    """Draw the line before the first distractor; what the axis should say of it."""
    counts = [run.config.get("distractors", 0) for run in members]
    first = dims - max((c for c in counts if isinstance(c, int)), default=0)
    if not 0 < first < dims:
        return ""
    axes.axvline(first - 0.5, color="white", linewidth=6)
    axes.axvline(first - 0.5, color="#D55E00", linewidth=3)
    return " (right of the orange line: distractors)"


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
