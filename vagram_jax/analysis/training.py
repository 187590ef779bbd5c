"""Plots of what changes in training: the model, the agent, wall time and memory.

A line is the median over the seeds of a run, and its band reaches from the lowest seed
to the highest. Figures of many runs have no bands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vagram_jax.analysis import figures, grouping, maps
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_AGENT = "sac/"  # the prefix of the agent's columns of metrics.csv


def model(runs: Sequence[Run], path: str | os.PathLike | None = None) -> Figure | None:
    """Plots the errors of the model on new data, and its attention, during training.

    Args:
      runs: those without a model are left out.
      path: of the PNG; None writes none.

    Returns:
      The figure, or None without a model.

    Raises:
      ResultsError: `path` can't be written.
    """
    runs = [run for run in runs if maps.num_dims(run)]
    has_distractors = any(_num_distractors(run) for run in runs)
    panels: dict[str, Callable[[Run], Callable[[Row], float]]] = {
        "error of the task's next state": lambda run: _rms(run, "new_error", task=True),
        "error of the distractors": lambda run: _rms(run, "new_error", task=False),
        "error of the reward": lambda run: _column("new_reward"),
        "error of the value of the next state": lambda run: _column("new_value"),
        "share of the loss on the task": _task_share,
        "members that a fit improved": lambda run: _column("improved"),
    }
    if not has_distractors:
        del panels["error of the distractors"], panels["share of the loss on the task"]
    lines = {
        title: {run.name: _line(run.model, value(run)) for run in runs}
        for title, value in panels.items()
    }
    return _draw(runs, lines, path)


def errors(run: Run) -> dict[str, float]:
    """Returns the errors of a run's model on new data, late in training.

    Args:
      run: a run with a model.

    Returns:
      Means over seeds and the second half of the fits: `state`, of the task's
      dimensions, `reward`, `value`, `missed` and `false_alarms`, see
      `diagnostics.errors_on_new`. NaN where nothing was recorded.
    """
    last = max((row["env_steps"] for row in run.model), default=0)
    rows = [row for row in run.model if row["env_steps"] > last / 2]
    values = {"state": _rms(run, "new_error", task=True)} | {
        name: _column(f"new_{name}")
        for name in ("reward", "value", "missed", "false_alarms")
    }
    return {name: _mean(map(value, rows)) for name, value in values.items()}


def agent(runs: Sequence[Run], path: str | os.PathLike | None = None) -> Figure | None:
    """Plots the losses, values, entropy and temperature of the agent during training.

    Args:
      runs: the runs.
      path: of the PNG; None writes none.

    Returns:
      The figure, or None if no run has these columns.

    Raises:
      ResultsError: `path` can't be written.
    """
    columns = {
        name: None
        for run in runs
        for name in (run.metrics[0] if run.metrics else ())
        if name.startswith(_AGENT)
    }
    lines = {
        name.removeprefix(_AGENT).replace("_", " "): {
            run.name: _line(run.metrics, _column(name)) for run in runs
        }
        for name in columns
    }
    return _draw(runs, lines, path)


def cost(runs: Sequence[Run], path: str | os.PathLike | None = None) -> Figure | None:
    """Plots wall time and peak memory against the environment steps.

    Args:
      runs: the runs.
      path: of the PNG; None writes none.

    Returns:
      The figure, or None without a `timing.csv`.

    Raises:
      ResultsError: `path` can't be written.
    """
    panels = {
        "wall time in minutes": ("wall_time_s", 1 / 60),
        "peak memory of the process in GB": ("memory_mb", 1e-3),
        "peak memory of a device in GB": ("device_memory_mb", 1e-3),
    }
    lines = {
        title: {run.name: _line(run.timing, _column(name, scale)) for run in runs}
        for title, (name, scale) in panels.items()
    }
    return _draw(runs, lines, path)


def _column(name: str, scale: float = 1.0) -> Callable[[Row], float]:
    return lambda row: scale * _number(row.get(name))


def _rms(run: Run, prefix: str, *, task: bool) -> Callable[[Row], float]:
    """The root mean square of a column per dimension, of the task or the distractors.

    Dimensions that the model predicts no worse than their mean are at most 1.
    """
    names = [f"{prefix}_dim_{d}" for d in _dims(run, task=task)]

    def value(row: Row) -> float:
        values = [_number(row.get(name)) for name in names]
        return math.sqrt(np.mean(np.square(values))) if values else math.nan

    return value


def _task_share(run: Run) -> Callable[[Row], float]:
    names = [f"attention_dim_{d}" for d in _dims(run, task=True)]
    return lambda row: sum(_number(row.get(name)) for name in names)


def _dims(run: Run, *, task: bool) -> range:
    """The state dimensions of the task, or those of the distractors."""
    dims = maps.num_dims(run)
    first = dims - _num_distractors(run)
    return range(first) if task else range(first, dims)


def _num_distractors(run: Run) -> int:
    count = run.config.get("distractors", 0)
    return count if isinstance(count, int) and count < maps.num_dims(run) else 0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _mean(values: Iterable[float]) -> float:
    """The mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _line(rows: Sequence[Row], value: Callable[[Row], float]) -> np.ndarray:
    """`[T, 4]`: step, median, lowest and highest over the seeds with a number."""
    by_step: dict[int, list[float]] = {}
    for row in rows:
        number = value(row)
        if math.isfinite(number):
            by_step.setdefault(row["env_steps"], []).append(number)
    points = [(x, np.median(v), min(v), max(v)) for x, v in sorted(by_step.items())]
    return np.array(points, dtype=float).reshape(-1, 4)


def _draw(
    runs: Sequence[Run],
    lines: Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike | None,
) -> Figure | None:
    """Draws a panel for each title with the lines of the runs that have numbers."""
    shown = {
        title: {name: line for name, line in by_name.items() if len(line)}
        for title, by_name in lines.items()
    }
    shown = {title: by_name for title, by_name in shown.items() if by_name}
    if not shown:
        return None
    is_crowded = len(runs) > grouping.MAX_LINES
    methods = grouping.methods(runs)
    labels = grouping.names(runs)
    if is_crowded:
        labels = {n: figures.display_name(method) for n, method in methods.items()}
    styles = figures.styles(methods, methods)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = figures.new_figure(height=2.5 * rows + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, by_name) in zip(grid, shown.items(), strict=False):
        for name, line in by_name.items():
            x, style = line[:, 0], dict(styles[name])
            if is_crowded:
                plain = {"color": style["color"], "alpha": 0.6, "linewidth": 1.2}
                axes.plot(x, line[:, 1], label=figures.escape(labels[name]), **plain)
            else:
                band = line[:, 1:]
                figures.draw_band(axes, x, band, labels[name], style, num_markers=6)
        if not title.startswith("share"):
            _use_log_if_wide(axes, by_name.values())
        figures.set_labels(axes, title, "environment steps", "")
        figures.use_engineering_ticks(axes)
    figures.add_common_legend(figure, grid, len(shown))
    return figures.save(figure, path)


def _use_log_if_wide(axes, lines) -> None:
    """Makes the y axis logarithmic if the values are positive and span much."""
    values = np.concatenate([line[:, 1:] for line in lines])
    if values.min() > 0 and values.max() > figures.LOG_SPAN * values.min():
        axes.set_yscale("log")
