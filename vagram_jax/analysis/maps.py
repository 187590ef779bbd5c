"""Maps of a model: which state dimensions a loss attends to, and how wrong each is.

Comes in: `Run`s with rows of `model.csv`. Goes out: a matplotlib figure, and a PNG
where a path is given.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vagram_jax.analysis import drawing, summary
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CELLS_WITH_TEXT = 16
_MAX_LABEL_CHARACTERS = 80  # side by side below a map
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
    figure = drawing.new_figure(
        height=0.75 * rows + (2.4 + 0.15 * longest) * len(groups)
    )
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
            drawing.label(axes, f"{env}: {title}", x_label, "", note=meaning)
    figure.supxlabel(_MEANS, x=0.01, ha="left", fontsize=10, color=drawing.SOFT)
    return drawing.finish(figure, path)


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


def _attention_groups(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """Runs by environment and number of state dimensions: a map has one width."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if dims := num_dims(run):
            env = str(run.model[0].get("env", ""))
            env = summary.env_of(run) if run.metrics else env
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
    axes.set_yticks(range(len(members)), list(map(drawing.plain, labels)))
    shown = range(0, len(names), max(1, len(names) // 30))
    axes.set_xticks(shown, [drawing.plain(names[d]) for d in shown])
    if max(map(len, names)) * len(shown) > _MAX_LABEL_CHARACTERS:
        axes.tick_params(axis="x", rotation=45)
    if len(names) <= _MAX_CELLS_WITH_TEXT:
        _write_cells(axes, image, values, kind)


def _norm(values: np.ndarray):
    from matplotlib.colors import LogNorm, Normalize

    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > drawing.LOG_SPAN * positive.min():
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
