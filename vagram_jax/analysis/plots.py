"""Pictures of returns: learning curves, sweeps, rivals side by side, profiles.

Comes in: `Run`s, or named numbers. Goes out: a matplotlib figure, and a PNG where a
path is given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vagram_jax.analysis import drawing, stats, summary
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    floors = summary.floor_per_env(runs)
    figure = drawing.new_figure(height=(4.4 + 0.13 * len(runs)) * len(floors) + 0.5)
    panels = figure.subplots(len(floors), 1, squeeze=False)[:, 0]
    for axes, (env, floor) in zip(panels, sorted(floors.items()), strict=True):
        members = [run for run in runs if summary.env_of(run) == env]
        for index, run in enumerate(members):
            _draw_curve(axes, run, floor, drawing.style(index), resamples)
        drawing.label(axes, env, "environment steps", "return")
        axes.xaxis.set_major_formatter(drawing.engineering())
        drawing.legend(axes, _curve_legend(members, floor))
    return drawing.finish(figure, path)


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
        seeds scored, as `summary.final_returns` gives them.
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
    figure = drawing.new_figure(height=5.6)
    axes = figure.subplots()
    _draw_sweep(axes, points)
    every_x = [x for by_x in points.values() for x in by_x]
    if every_x and min(every_x) > 0 and max(every_x) > drawing.LOG_SPAN * min(every_x):
        axes.set_xscale("log")
    drawing.label(axes, title, x_label, y_label)
    drawing.legend(axes, "line: IQM, band: 95% interval")
    return drawing.finish(figure, path)


def panels(
    points: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> Figure:
    """Several sweeps side by side, on the same axes: a panel each, two in a row.

    Args:
      points: a panel's title to what `sweep` takes.
      path: where to write the PNG, if anywhere.
      x_label: what is swept, with its unit.
      y_label: what the values are.
      log: whether the values stand on a logarithmic axis.

    Returns:
      The figure.

    Raises:
      ValueError: fewer than 3 seeds at a point.
      ResultsError: `path` can't be written.
    """
    rows = -(-len(points) // 2)
    figure = drawing.new_figure(height=2.7 * rows + 1.2)
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, by_name) in zip(grid, points.items(), strict=False):
        _draw_sweep(axes, by_name)
        drawing.label(axes, title, x_label, y_label)
        if log:
            axes.set_yscale("log")
    for axes in grid[len(points) :]:
        axes.set_visible(False)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return drawing.finish(figure, path)


def intervals(
    values: Mapping[str, Sequence[float]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str = "final return",
    title: str = "",
    reference: str = "",
) -> Figure:
    """A row for each rival: its seeds, their IQM and its 95% interval, best on top.

    Args:
      values: a rival's name to `[num_seeds]` values.
      path: where to write the PNG, if anywhere.
      x_label: what the values are, with their unit.
      title: over the picture.
      reference: the rival whose interval is shaded over all rows, if any.

    Returns:
      The figure.

    Raises:
      ValueError: fewer than 3 seeds.
      ResultsError: `path` can't be written.
    """
    found = {name: stats.interval({name: np.asarray(v)}) for name, v in values.items()}
    order = sorted(found, key=lambda name: found[name].value)
    figure = drawing.new_figure(height=1.6 + 0.38 * len(order))
    axes = figure.subplots()
    if reference in found:
        _, low, high = found[reference]
        axes.axvspan(low, high, color=drawing.style(0)["color"], alpha=0.12, lw=0)
    for row, name in enumerate(order):
        value, low, high = found[name]
        colour = drawing.style(0 if name == reference else 1)["color"]
        axes.plot(values[name], [row] * len(values[name]), "|", color=colour, alpha=0.5)
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5)
        axes.plot(value, row, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(order)), list(map(drawing.plain, order)))
    counts = drawing.span({len(v) for v in values.values()})
    note = f"dot: IQM, line: 95% interval, ticks: the {counts} seeds"
    drawing.label(axes, title, x_label, "", note=note)
    return drawing.finish(figure, path)


def performance_profiles(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | os.PathLike | None = None,
    *,
    thresholds: Sequence[float],
    x_label: str = "final return",
    title: str = "",
    resamples: int = 2000,
) -> Figure:
    """The share of runs above each threshold: steps and 95% band, one line per loss.

    A line keeps its height up to the next threshold, as no share between the two was
    computed. Thresholds that lie closer show more steps.

    Args:
      values: a loss's name to a task's name to `[num_seeds]` final returns, diverged
        seeds scored, as `summary.final_returns` gives them; in units in which a
        threshold means the same on every task.
      path: where to write the PNG, if anywhere.
      thresholds: `[T]`, ascending.
      x_label: what the values are, with their unit.
      title: over the picture.
      resamples: of each bootstrap.

    Returns:
      The figure.

    Raises:
      ValueError: losses with different tasks, or what `stats.performance_profile`
        refuses.
      ResultsError: `path` can't be written.
    """
    tasks = sorted({", ".join(sorted(by_task)) for by_task in values.values()})
    if len(tasks) != 1:
        raise ValueError(
            f"performance_profiles: tasks {tasks}; every loss on the same ones is "
            "accepted, as a profile depends on its tasks"
        )
    figure = drawing.new_figure(height=5.6)
    axes = figure.subplots()
    for index, (name, by_task) in enumerate(values.items()):
        found = stats.performance_profile(
            by_task, thresholds=thresholds, resamples=resamples
        )
        seeds = drawing.span({len(finals) for finals in by_task.values()})
        label = f"{name} ({seeds} seeds on each of {len(by_task)} tasks)"
        shares, style = np.array(found[1:]).T, drawing.style(index)
        drawing.line(axes, found.thresholds, shares, label, style, marks=8, steps=True)
    axes.set_ylim(-0.03, 1.03)
    drawing.label(axes, title, x_label, "share of runs above")
    drawing.legend(axes, "line: mean over tasks, band: pointwise 95% interval")
    return drawing.finish(figure, path)


def _draw_sweep(axes, points: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
    for index, (name, by_x) in enumerate(points.items()):
        xs = sorted(by_x)
        found = np.array([stats.interval({name: np.asarray(by_x[x])}) for x in xs])
        label = f"{name} ({drawing.span({len(by_x[x]) for x in xs})} seeds)"
        style = drawing.style(index)
        drawing.line(axes, np.array(xs), found, label, style, marks=len(xs))


def _draw_curve(axes, run: Run, floor: float, style, resamples: int) -> None:
    curve = summary.curves(run.metrics, floor=floor, resamples=resamples)
    finals = summary.final_returns(run.metrics, floor=floor)
    label = f"{run.name}: {len(finals.seeds)} seeds, {len(finals.diverged)} diverged"
    drawing.line(axes, curve.env_steps, np.array(curve[1:]).T, label, style, marks=8)
    at = sorted(set(finals.diverged.values()))
    heights = np.interp(at, curve.env_steps, curve.value)
    axes.plot(
        at, heights, "x", color=style["color"], markersize=11, markeredgewidth=2.5
    )


def _curve_legend(members: Sequence[Run], floor: float) -> str:
    counts = {len({row["seed"] for row in run.metrics}) for run in members}
    middle = ", ".join(f"middle {n - 2 * (n // 4)} of {n}" for n in sorted(counts))
    legend = f"line: interquartile mean ({middle} seeds), band: pointwise 95% interval"
    if any(summary.final_returns(run.metrics, floor=floor).diverged for run in members):
        legend += "\ncross: a seed diverged, from there on it counts with the lowest "
        legend += f"return, {summary.format_number(floor)}"
    return legend
