"""Maps of what the losses attend to, and of the model's errors, by state dimension."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vagram_jax.analysis import figures, grouping, summary
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CELLS_WITH_TEXT = 16
_MAX_LABEL_CHARACTERS = 50  # of horizontal tick labels below an attention map
# The title and the explanation of each attention map, by the prefix of its columns.
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
_LAST_FITS = 0.25  # the share of a seed's model fits that an attention map averages


def attention(
    runs: Sequence[Run],
    path: str | os.PathLike | None = None,
    *,
    dim_names: Sequence[str] | None = None,
) -> Figure:
    """Plots the share of the loss, and the model error, on each state dimension.

    Each environment has two maps of runs by dimensions. The first shows the share of
    the loss (`attention_dim_0`, ... in `model.csv`): curvature of the loss in the
    prediction times variance of the change, divided by the sum over dimensions, so that
    units cancel. The second shows the hold-out error (`error_dim_0`, ...) in standard
    deviations of the change: 1 is as bad as predicting the mean change.

    A cell is the mean over seeds, and for each seed over the last quarter of its model
    fits. Seeds with a number that isn't finite are left out and counted in the label. A
    line separates the distractors, which are the last dimensions.

    Args:
      runs: those without a model are left out.
      path: of the PNG; None writes none.
      dim_names: a name for each state dimension; None shows its index.

    Raises:
      ValueError: no run has the columns, or `dim_names` has another length.
      ResultsError: `path` can't be written.
    """
    groups = _attention_groups(runs)
    rows = sum(max(2, len(members)) for members in groups.values())
    longest = max(map(len, dim_names or [""]))  # long names are drawn at an angle
    figure = figures.new_figure(
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
            title, note = _MAPS[kind]
            figures.set_labels(axes, f"{env}: {title}", x_label, "", note=note)
    note = "Mean over seeds, for each seed over the last quarter of its model fits."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=10, color=figures.GRAY)
    return figures.save(figure, path)


def num_dims(run: Run) -> int:
    """Returns the number of state dimensions in a run's `model.csv`, 0 without one."""
    columns = run.model[0] if run.model else {}
    return max(
        sum(re.fullmatch(rf"{kind}_dim_\d+", name) is not None for name in columns)
        for kind in _MAPS
    )


def _attention_groups(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """Groups runs by environment and number of state dimensions."""
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


def _mean_per_dimension(run: Run, kind: str, dims: int) -> tuple[np.ndarray, int, int]:
    """Mean over seeds `[dims]`, number of seeds in the mean, number of all seeds."""
    fits: dict[int, list] = {}
    for row in sorted(run.model, key=lambda row: row["env_steps"]):
        cells = [row.get(f"{kind}_dim_{d}") for d in range(dims)]
        numbers = [v if isinstance(v, int | float) else np.nan for v in cells]
        fits.setdefault(row["seed"], []).append(numbers)
    per_seed = np.array(
        [
            np.mean(rows[-math.ceil(_LAST_FITS * len(rows)) :], axis=0, dtype=float)
            for rows in fits.values()
        ]
    )
    usable = per_seed[np.isfinite(per_seed).all(axis=1)]
    mean = usable.mean(axis=0) if len(usable) else np.full(dims, np.nan)
    return mean, len(usable), len(per_seed)


def _draw_map(axes, members: Sequence[Run], names: list[str], kind: str) -> None:
    means = [_mean_per_dimension(run, kind, len(names)) for run in members]
    shown = grouping.names(members)
    values = np.array([mean for mean, _, _ in means])
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        cmap="cividis",
        norm=_color_scale(values),
        interpolation="nearest",
    )
    axes.set_facecolor("0.85")  # missing cells are gray, not the lowest color
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03)
    bar.ax.tick_params(labelsize=9)
    if kind == "attention":
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    axes.hlines(np.arange(len(members))[1:] - 0.5, *axes.get_xlim(), "white", lw=1.5)
    labels = [
        textwrap.fill(shown[run.name], 28) + f"\n{used}/{total} seeds"
        for run, (_, used, total) in zip(members, means, strict=True)
    ]
    axes.set_yticks(range(len(members)), list(map(figures.escape, labels)))
    ticks = range(0, len(names), max(1, len(names) // 30))
    axes.set_xticks(ticks, [figures.escape(names[d]) for d in ticks])
    if max(map(len, names)) * len(ticks) > _MAX_LABEL_CHARACTERS:
        axes.tick_params(axis="x", rotation=45)
    if len(names) <= _MAX_CELLS_WITH_TEXT:
        _write_cells(axes, image, values, kind)


def _color_scale(values: np.ndarray):
    from matplotlib.colors import LogNorm, Normalize

    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size and positive.max() > figures.LOG_SPAN * positive.min():
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
    """Draws a line before the first distractor; returns its note for the x label."""
    counts = [run.config.get("distractors", 0) for run in members]
    first = dims - max((c for c in counts if isinstance(c, int)), default=0)
    if not 0 < first < dims:
        return ""
    axes.axvline(first - 0.5, color="white", linewidth=6)
    axes.axvline(first - 0.5, color="black", linewidth=2.5)
    return " (right of the black line: distractors)"
