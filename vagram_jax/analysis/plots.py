"""Plots of returns.

Each function takes `Run`s or named numbers, returns a matplotlib figure, and writes it
as PNG if a path is given.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vagram_jax.analysis import figures, grouping, stats, summary
from vagram_jax.analysis.published import PublishedCurve
from vagram_jax.analysis.stats import Values
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MAX_PANELS = 12  # of an environment's learning curves, those with the best runs


def learning_curves(
    runs: Sequence[Run],
    path: str | os.PathLike | None = None,
    *,
    against: Mapping[str, Sequence[PublishedCurve]] | None = None,
    resamples: int = 2000,
) -> Figure:
    """Plots return against environment steps: IQM and 95% interval, a line per run.

    There is one panel per environment, or per setting with more than
    `grouping.MAX_LINES` runs. A cross marks the step at which a seed diverged; from
    that step on the seed counts with the lowest return of the environment.

    Args:
      runs: each with at least one evaluation.
      path: of the PNG; None writes none.
      against: published curves of each environment, as from `published.load`, which are
        drawn in gray as far as the runs go, beside runs without distracting dimensions;
        None draws none.
      resamples: number of bootstrap resamples at each step.

    Raises:
      ValueError: a run has no evaluation or several environments.
      ResultsError: `path` can't be written.
    """
    floors = summary.floor_per_env(runs)
    finals = summary.finals_per_run(runs)
    shown: list[tuple[str, str, list[Run]]] = []
    for env in sorted(floors):
        members = [run for run in runs if summary.env_of(run) == env]
        groups = grouping.panels(env, members)
        best = sorted(groups, key=lambda title: -_best(groups[title], finals))
        kept = [title for title in groups if title in best[:_MAX_PANELS]]
        shown += [(env, title, groups[title]) for title in kept]
    columns = 1 if len(shown) == len(floors) else 2
    rows = -(-len(shown) // columns)
    height = 4.4 + 0.13 * len(runs) if columns == 1 else 2.9
    figure = figures.new_figure(height=height * rows + 0.5)
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (env, title, members) in zip(all_axes, shown, strict=False):
        names, floor = _curve_names(members, finals, columns), floors[env]
        styles = figures.styles(names, grouping.methods(members))
        for run in members:
            curve = summary.curves(run.metrics, floor=floor, resamples=resamples)
            own = finals[run.name], styles[run.name]
            _draw_curve(axes, names[run.name], curve, *own)
        if not any(run.config.get("distractors") for run in members):
            published = (against or {}).get(env.lower(), [])
            _draw_published(axes, published, max(axes.get_xlim()[1], 1.0))
        figures.set_labels(axes, title, "environment steps", "return")
        figures.use_engineering_ticks(axes)
        if columns == 1:
            figures.add_legend(axes, _curve_legend(members, finals, floor))
    if columns == 2:
        figures.add_common_legend(figure, all_axes, len(shown))
    return figures.save(figure, path)


def sweep(
    points: Mapping[str, Mapping[float, Values]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str,
    y_label: str = "final return",
    title: str = "",
) -> Figure:
    """Plots the final return against a swept number: IQM and 95% interval.

    Args:
      points: method to swept number to `[num_seeds]` final returns, as
        `summary.final_returns` gives them; one line per method.
      path: of the PNG; None writes none.
      x_label: the swept number, with its unit.
      y_label: the values, with their unit.
      title: of the figure.

    Raises:
      ValueError: a point has fewer than 3 seeds.
      ResultsError: `path` can't be written.
    """
    figure = figures.new_figure(height=5.6)
    axes = figure.subplots()
    _draw_sweep(axes, points)
    every_x = [x for by_x in points.values() for x in by_x]
    if every_x and min(every_x) > 0 and max(every_x) > figures.LOG_SPAN * min(every_x):
        axes.set_xscale("log")
    figures.set_labels(axes, title, x_label, y_label)
    figures.add_legend(axes, "line: IQM, band: 95% interval")
    return figures.save(figure, path)


def panels(
    points: Mapping[str, Mapping[str, Mapping[float, Values]]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
) -> Figure:
    """Plots several sweeps in panels with common axes, two panels per row.

    Args:
      points: title of a panel to the points that `sweep` takes.
      path: of the PNG; None writes none.
      x_label: the swept number, with its unit.
      y_label: the values, with their unit.
      log: whether the y axis is logarithmic.

    Raises:
      ValueError: a point has fewer than 3 seeds.
      ResultsError: `path` can't be written.
    """
    rows = -(-len(points) // 2)
    figure = figures.new_figure(height=2.7 * rows + 1.2)
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, by_name) in zip(grid, points.items(), strict=False):
        _draw_sweep(axes, by_name)
        figures.set_labels(axes, title, x_label, y_label)
        if log:
            axes.set_yscale("log")
    for axes in grid[len(points) :]:
        axes.set_visible(False)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figures.save(figure, path)


def intervals(
    values: Mapping[str, Values],
    path: str | os.PathLike | None = None,
    *,
    x_label: str = "final return",
    title: str = "",
    reference: str = "",
    methods: Mapping[str, str] | None = None,
) -> Figure:
    """Plots each method's seeds, IQM and 95% interval in one row, best on top.

    Args:
      values: method to `[num_seeds]` values.
      path: of the PNG; None writes none.
      x_label: the values, with their unit.
      title: of the figure.
      reference: the method whose interval is shaded over all rows; "" shades none.
      methods: name of a row to the method whose color it has; a name that it lacks is
        itself a method.

    Raises:
      ValueError: a method has fewer than 3 seeds.
      ResultsError: `path` can't be written.
    """
    results = {n: stats.interval({n: np.asarray(v)}) for n, v in values.items()}
    order = sorted(results, key=lambda name: results[name].value)
    styles = figures.styles(order, methods)
    figure = figures.new_figure(height=1.6 + 0.38 * len(order))
    axes = figure.subplots()
    if reference in results:
        _, low, high = results[reference]
        axes.axvspan(low, high, color=styles[reference]["color"], alpha=0.12, lw=0)
    for row, name in enumerate(order):
        value, low, high = results[name]
        color = styles[name]["color"]
        axes.plot(values[name], [row] * len(values[name]), "|", color=color, alpha=0.5)
        axes.plot([low, high], [row, row], color=color, linewidth=2.5)
        axes.plot(value, row, "o", color=color, markersize=7)
    names = [figures.escape(figures.display_name(name)) for name in order]
    axes.set_yticks(range(len(order)), names)
    counts = _range_text({len(v) for v in values.values()})
    note = f"dot: IQM, line: 95% interval, ticks: the {counts} seeds"
    figures.set_labels(axes, title, x_label, "", note=note)
    return figures.save(figure, path)


def forest(
    effects: Mapping[str, Mapping[str, stats.Interval]],
    path: str | os.PathLike | None = None,
    *,
    x_label: str,
    reference: float = 0.0,
    title: str = "",
) -> Figure:
    """Plots effect sizes with their intervals, one row each, against a reference.

    A vertical line marks the reference. A dot is filled if the interval excludes the
    reference. The numbers are printed at the right of each row.

    Args:
      effects: heading of a group to the labels of its rows to an effect size with its
        interval, from top to bottom. A group with the heading "" has none.
      path: of the PNG; None writes none.
      x_label: the effect size, with its unit.
      reference: the effect size that means "no difference", such as 0.5 for a
        probability of improvement.
      title: of the figure.

    Raises:
      ValueError: no row, or a value that isn't finite.
      ResultsError: `path` can't be written.
    """
    rows = [
        row
        for heading, group in effects.items()
        for row in ([(heading, None)] if heading else []) + [*group.items()]
    ]
    numbers = [effect for _, effect in rows if effect is not None]
    if not numbers or not np.isfinite(numbers).all():
        raise ValueError(
            f"forest: effects={dict(effects)}; at least one row of finite numbers is "
            "accepted"
        )
    figure = figures.new_figure(height=1.6 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.axvline(reference, color=figures.GRAY, linewidth=1, linestyle="--")
    for position, (heading, effect) in enumerate(rows):
        if effect is None:
            left = {"transform": axes.get_yaxis_transform(), "va": "center"}
            text = figures.escape(heading)
            axes.text(0, position, text, backgroundcolor="white", **left)
        else:
            _forest_row(axes, position, effect, reference)
    ticks = {i: label for i, (label, effect) in enumerate(rows) if effect is not None}
    axes.set_yticks([*ticks], [*map(figures.escape, ticks.values())])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    note = f"line: 95% interval, filled dot: the interval excludes {reference:g}"
    figures.set_labels(axes, title, x_label, "", note=note)
    return figures.save(figure, path)


def _forest_row(
    axes: Axes, position: int, effect: stats.Interval, reference: float
) -> None:
    """Draws the interval and the dot of an effect, and prints its numbers."""
    value, low, high = effect
    excludes = low > reference or high < reference
    color = "0" if excludes else "0.45"
    axes.plot([low, high], [position, position], color=color, linewidth=2)
    fill = color if excludes else "white"
    axes.plot(value, position, "o", color=color, markersize=7, markerfacecolor=fill)
    axes.annotate(
        summary.format_interval(effect),
        (1, position),
        (8, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=10,
    )


def performance_profiles(
    values: Mapping[str, Mapping[str, Values]],
    path: str | os.PathLike | None = None,
    *,
    thresholds: Values,
    x_label: str = "final return",
    title: str = "",
    resamples: int = 2000,
) -> Figure:
    """Plots the share of runs above each threshold with its 95% band.

    The lines are steps: they keep their height until the next threshold.

    Args:
      values: method to task to `[num_seeds]` final returns, as
        `summary.final_returns` gives them, in units in which a threshold means the same
        on every task.
      path: of the PNG; None writes none.
      thresholds: `[T]`, ascending.
      x_label: the values, with their unit.
      title: of the figure.
      resamples: number of bootstrap resamples.

    Raises:
      ValueError: the methods have different tasks, or an error of
        `stats.performance_profile`.
      ResultsError: `path` can't be written.
    """
    tasks = sorted({", ".join(sorted(by_task)) for by_task in values.values()})
    if len(tasks) != 1:
        raise ValueError(
            f"performance_profiles: tasks {tasks}; the same tasks for every method are "
            "accepted, because a profile depends on its tasks"
        )
    figure = figures.new_figure(height=5.6)
    axes = figure.subplots()
    styles = figures.styles(values)
    for name, by_task in values.items():
        profile = stats.performance_profile(
            by_task, thresholds=thresholds, resamples=resamples
        )
        seeds = _range_text({len(finals) for finals in by_task.values()})
        label = f"{figures.display_name(name)} ({seeds} seeds"
        label += f" on each of {len(by_task)} tasks)" if len(by_task) > 1 else ")"
        shares = np.array(profile[1:]).T
        x, style = profile.thresholds, styles[name]
        figures.draw_band(axes, x, shares, label, style, num_markers=8, is_step=True)
    axes.set_ylim(-0.03, 1.03)
    figures.set_labels(axes, title, x_label, "share of runs above")
    note = "line: mean over tasks, band: pointwise 95% interval"
    figures.add_legend(axes, note if "," in tasks[0] else note.partition(", ")[2])
    return figures.save(figure, path)


def prediction(
    numbers: Mapping[str, np.ndarray],
    path: str | os.PathLike | None = None,
    *,
    title: str = "",
) -> Figure:
    """Plots the errors of predictions of 1 to H steps, on new episodes of a run.

    Args:
      numbers: `error_dim` and `disagreement_dim` `[H, obs_dim]`, and `value_error`
        `[H]`, as from `diagnostics.k_step_errors`.
      path: of the PNG; None writes none.
      title: of the figure.

    Raises:
      ResultsError: `path` can't be written.
    """
    figure = figures.new_figure(height=8.4)
    panels = figure.subplots(3, 1, sharex=True)
    labels = {
        "error_dim": "error of the state",
        "disagreement_dim": "disagreement of the members",
        "value_error": "error of the value",
    }
    x = np.arange(1, len(numbers["value_error"]) + 1)
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        values = numbers[name].reshape(len(x), -1)
        axes.plot(x, values, color="0.6", alpha=0.5)
        axes.plot(x, np.sqrt(np.mean(values**2, axis=1)), "o-", color="0")
        figures.set_labels(axes, "", "", label)
    note = "gray: state dimensions, black: root mean square; in std of the data"
    figures.set_labels(panels[0], title, "", labels["error_dim"], note=note)
    panels[-1].set_xlabel("predicted steps")
    return figures.save(figure, path)


def _draw_sweep(axes, points: Mapping[str, Mapping[float, Values]]) -> None:
    styles = figures.styles(points)
    for name, by_x in points.items():
        xs = sorted(by_x)
        results = np.array([stats.interval({name: np.asarray(by_x[x])}) for x in xs])
        seeds = _range_text({len(by_x[x]) for x in xs})
        label = f"{figures.display_name(name)} ({seeds} seeds)"
        x, style = np.array(xs), styles[name]
        figures.draw_band(axes, x, results, label, style, num_markers=len(xs))


def _best(runs: Sequence[Run], finals: Mapping[str, summary.Finals]) -> float:
    """The highest interquartile mean of some runs."""
    return max(float(stats.iqm(finals[run.name].values)) for run in runs)


def _curve_names(runs: Sequence[Run], finals, columns: int) -> dict[str, str]:
    """The entry of each run in the legend; panels that share one have short entries."""
    if columns > 1:
        return {run.name: figures.display_name(grouping.method(run)) for run in runs}
    return {
        name: f"{text}: {len(finals[name].seeds)} seeds, "
        f"{len(finals[name].diverged)} diverged"
        for name, text in grouping.names(runs).items()
    }


def _draw_curve(axes, label: str, curve, finals: summary.Finals, style) -> None:
    values = np.array(curve[1:]).T
    figures.draw_band(axes, curve.env_steps, values, label, style, num_markers=8)
    steps = sorted(set(finals.diverged.values()))
    heights = np.interp(steps, curve.env_steps, curve.value)
    cross = {"color": style["color"], "markersize": 11, "markeredgewidth": 2.5}
    axes.plot(steps, heights, "x", **cross)


def _draw_published(
    axes: Axes, curves: Sequence[PublishedCurve], last_step: float
) -> None:
    """Draws gray lines with bands of one standard deviation, up to `last_step`."""
    for curve, style in zip(curves, itertools.cycle(["--", ":", "-.", "-"])):
        shown = curve.env_steps <= last_step
        if not shown.any():
            continue
        label = f"{curve.algorithm}, published: {curve.seeds} seeds on v4, mean and std"
        x, mean, std = (v[shown] for v in (curve.env_steps, curve.mean, curve.std))
        axes.fill_between(x, mean - std, mean + std, color="0.5", alpha=0.1, lw=0)
        axes.plot(x, mean, style, color="0.4", label=figures.escape(label))


def _curve_legend(
    runs: Sequence[Run], finals: Mapping[str, summary.Finals], floor: float
) -> str:
    own = [finals[run.name] for run in runs]
    counts = sorted({len(final.seeds) for final in own})
    middle = ", ".join(f"middle {n - 2 * (n // 4)} of {n}" for n in counts)
    legend = f"line: interquartile mean ({middle} seeds), band: pointwise 95% interval"
    if any(final.diverged for final in own):
        legend += "\ncross: a seed diverged; from there on it counts with the lowest "
        legend += f"return, {summary.format_number(floor)}"
    return legend


def _range_text(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
