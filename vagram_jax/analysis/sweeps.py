"""The settings of a sweep: sorted by result, and the effect of each axis.

An axis is a label whose values differ between the runs, such as `loss` or
`sac.discount`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vagram_jax.analysis import figures, grouping, summary
from vagram_jax.storage.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Summaries = Mapping[str, Mapping[str, Any]]


class Effect(NamedTuple):
    """How much the result depends on the values of an axis.

    Attributes:
      axis: the label.
      values: of the label, ascending if they are numbers.
      results: `[num_settings, num_values]` interquartile means of the final returns, in
        the settings of the other axes in which every value was trained.
      methods: `[num_settings]`, the method of each setting; empty if the axis is the
        loss.
    """

    axis: str
    values: list[str]
    results: np.ndarray
    methods: list[str]

    @property
    def means(self) -> np.ndarray:
        """`[num_values]`, means over the settings."""
        return self.results.mean(axis=0)


def is_sweep(runs: Sequence[Run]) -> bool:
    """Whether runs differ in a label other than the loss."""
    return any(axis != "loss" for axis in grouping.axes(runs))


def best_first(runs: Sequence[Run], summaries: Summaries) -> list[Run]:
    """Returns runs by their interquartile mean, the best first and NaN last.

    Args:
      runs: the runs of one environment.
      summaries: of the runs, from `summary.summarize`.
    """

    def order(run: Run) -> float:
        value = summaries[run.name]["iqm"]
        return -value if np.isfinite(value) else np.inf

    return sorted(runs, key=order)


def effects(runs: Sequence[Run], summaries: Summaries) -> list[Effect]:
    """Returns the effect of each axis, the largest first.

    Only settings in which every value of the axis was trained count, so that the values
    differ in nothing else. An axis without such a setting is left out.

    Args:
      runs: the runs of one environment.
      summaries: of the runs, from `summary.summarize`.
    """
    found = []
    for axis in grouping.axes(runs):
        having = [run for run in runs if axis in grouping.labels(run)]
        values = sorted({grouping.labels(run)[axis] for run in having}, key=_number)
        rows, methods = [], []
        for members in grouping.by_setting(having, axis).values():
            by_value = {
                grouping.labels(run)[axis]: summaries[run.name]["iqm"]
                for run in members
            }
            if len(by_value) == len(values):
                rows.append([by_value[value] for value in values])
                own = {grouping.method(run) for run in members}
                methods += own if len(own) == 1 else ()
        if rows and np.isfinite(rows).all():
            found.append(Effect(axis, values, np.array(rows, dtype=float), methods))
    return sorted(found, key=lambda effect: -np.ptp(effect.means))


def effect_rows(found: Sequence[Effect]) -> list[list[Any]]:
    """Returns a row per axis and value: mean result and its distance from the best."""
    return [
        [
            effect.axis,
            figures.display_name(value) if effect.axis == "loss" else value,
            summary.format_number(mean),
            summary.format_number(effect.means.max() - mean),
            len(effect.results),
        ]
        for effect in found
        for value, mean in zip(effect.values, effect.means, strict=True)
    ]


def plot(found: Sequence[Effect], path: str | os.PathLike | None = None) -> Figure:
    """Plots the results against the values of each axis, two panels per row.

    A thin line is a setting of the other axes, in the color of its method; black is the
    mean.

    Args:
      found: at least one, from `effects`.
      path: of the PNG; None writes none.

    Raises:
      ResultsError: `path` can't be written.
    """
    rows = -(-len(found) // 2)
    figure = figures.new_figure(height=3.0 * rows + 0.6)
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
    for axes, effect in zip(grid, found, strict=False):
        x = np.arange(len(effect.values))
        for index, results in enumerate(effect.results):
            method = effect.methods[index] if effect.methods else ""
            color = figures.color(method) if method else "0.7"
            label = figures.display_name(method) if method else None
            axes.plot(x, results, ".-", color=color, alpha=0.6, label=label)
        axes.plot(x, effect.means, "o-", color="0", linewidth=2.5, label="mean")
        shown = list(map(figures.escape, effect.values))
        axes.set_xticks(x, shown, rotation=30 if max(map(len, shown)) > 8 else 0)
        figures.set_labels(axes, effect.axis, "", "final return")
    figures.add_common_legend(figure, grid, len(found))
    return figures.save(figure, path)


def _number(text: str) -> tuple[bool, float, str]:
    """Sorts numbers by value and before texts."""
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text
