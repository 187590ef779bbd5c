"""Converts the metrics of an epoch to CSV rows and a progress line.

A metric whose name begins with `model/` becomes a column of `model.csv`, without that
prefix. Every other metric becomes a column of `metrics.csv` under its full name. A
vector becomes one column per entry, named with its index. The clock is in `timing.csv`
only, so that the other tables of a repeated run have the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vagram_jax import divergence
from vagram_jax.analysis import stats

MODEL = "model/"
"""The prefix of the metrics that become columns of `model.csv`."""


class Progress(NamedTuple):
    """The state of training after the warm-up or an epoch. L is the number of lanes.

    Attributes:
      env_steps: environment steps of each lane so far.
      returns: `[L]`, mean return of an evaluation's episodes, NaN for a diverged lane;
        empty without an evaluation.
      lengths: `[L]`, mean length of those episodes; empty without an evaluation.
      metrics: names to `[L]` or `[L, n]`: those of an epoch, if one was computed, and
        those of the environment itself, if there is an evaluation.
      metric_shapes: names of all metrics to their shapes in one lane, `()` or `(n,)`,
        in the order of the columns of `model.csv`.
      diverged_at: `[L]`, the step of the divergence, or -1.
      diverged_by: `[L]`, its cause, an index of `divergence.CAUSES`.
      dropped: `[L]`, number of transitions dropped so far as not finite.
      seconds: seconds since the start of training.
      memory: peak memory in MB by column of `timing.csv`, see `devices.peak_memory`.
      seconds_per_step: speed since the first epoch, which includes compilation; None
        before the second epoch.
    """

    env_steps: int
    returns: np.ndarray
    lengths: np.ndarray
    metrics: Mapping[str, np.ndarray]
    metric_shapes: Mapping[str, tuple[int, ...]]
    diverged_at: np.ndarray
    diverged_by: np.ndarray
    dropped: np.ndarray
    seconds: float
    memory: Mapping[str, int | None]
    seconds_per_step: float | None


class Speed:
    """Seconds per step since the end of the first epoch."""

    def __init__(self):
        self._start = None

    def __call__(self, env_steps: int) -> float | None:
        """Returns it after an epoch that ended at a step; None after the first one."""
        now = time.monotonic()
        if self._start is None:  # the first epoch has compiled the programs
            self._start = env_steps, now
            return None
        steps, seconds = env_steps - self._start[0], now - self._start[1]
        return seconds / steps


def of_lanes(progress: Progress, lanes: slice) -> Progress:
    """The progress of some of the lanes."""
    return progress._replace(
        returns=progress.returns[lanes],
        lengths=progress.lengths[lanes],
        metrics={name: values[lanes] for name, values in progress.metrics.items()},
        diverged_at=progress.diverged_at[lanes],
        diverged_by=progress.diverged_by[lanes],
        dropped=progress.dropped[lanes],
    )


def metric_rows(
    progress: Progress, seeds: Sequence[int], constant: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`, one per seed; none without an evaluation.

    Args:
      progress: of the lanes of the seeds.
      seeds: one per lane.
      constant: columns with the same value in all rows; they come first.

    Returns:
      Columns to values. The fields of the metrics are empty if no epoch was computed.
    """
    names = sorted(n for n in progress.metric_shapes if not n.startswith(MODEL))
    rows = []
    for lane, seed in enumerate(seeds if progress.returns.size else ()):
        diverged_at = int(progress.diverged_at[lane])
        row = {
            **constant,
            "seed": int(seed),
            "env_steps": progress.env_steps,
            "return": float(progress.returns[lane]),
            "length": float(progress.lengths[lane]),
            "diverged_at": diverged_at if diverged_at >= 0 else None,
            "diverged_by": divergence.CAUSES[progress.diverged_by[lane]] or None,
            "dropped": int(progress.dropped[lane]),
        }
        for name in names:
            row |= _columns(progress, name, lane)
        rows.append(row)
    return rows


def model_rows(
    progress: Progress, seeds: Sequence[int], constant: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of `model.csv`, one per seed; none without a fit of a model.

    Args:
      progress: of the lanes of the seeds.
      seeds: one per lane.
      constant: columns with the same value in all rows; they come first.

    Returns:
      Columns to values.
    """
    names = [name for name in progress.metric_shapes if name.startswith(MODEL)]
    rows = []
    has_fit = any(name in progress.metrics for name in names)
    for lane, seed in enumerate(seeds if has_fit else ()):
        row = {**constant, "seed": int(seed), "env_steps": progress.env_steps}
        for name in names:
            row |= _columns(progress, name, lane)
        rows.append(row)
    return rows


def timing_row(progress: Progress, seeds: Sequence[int]) -> dict[str, Any]:
    """The row of `timing.csv`: first seed, steps, seconds and memory."""
    return {
        "seed": int(seeds[0]),
        "env_steps": progress.env_steps,
        "wall_time_s": round(progress.seconds, 3),
        **progress.memory,
    }


def progress_line(
    name: str, progress: Progress, *, last: int, later_steps: float = 0.0
) -> str:
    """One line with steps, returns of the seeds, time spent and time left.

    The return is the interquartile mean over the seeds that have one, with the lowest
    and the highest.

    Args:
      name: name of the run.
      progress: of its lanes, with an evaluation.
      last: the step at which training will end.
      later_steps: steps of the runs that follow, which may be as fast.
    """
    returns = progress.returns[np.isfinite(progress.returns)]
    text = f"{name}: step {progress.env_steps} of {last}"
    if returns.size:
        text += f", return {stats.iqm(returns):.0f} "
        text += f"({returns.min():.0f} to {returns.max():.0f})"
    causes = [divergence.CAUSES[cause] for cause in progress.diverged_by if cause]
    if causes:
        text += f", {len(causes)} diverged ({', '.join(sorted(set(causes)))})"
    broken = progress.returns.size - returns.size - len(causes)
    if broken:
        text += f", {broken} without a return"
    text += f", {progress.seconds:.0f} s"
    if (speed := progress.seconds_per_step) is not None:
        left = last - progress.env_steps
        text += f", {speed * left:.0f} s left"
        if later_steps:
            text += f", {speed * (left + later_steps):.0f} s with the runs that follow"
    return text


def _columns(progress: Progress, name: str, lane: int) -> dict[str, Any]:
    """The columns of one metric; their values are None if it wasn't computed."""
    column, shape = name.removeprefix(MODEL), progress.metric_shapes[name]
    value = progress.metrics[name][lane].tolist() if name in progress.metrics else None
    if shape == ():
        return {column: value}
    entries = value or [None] * shape[0]
    return {f"{column}_{i}": entry for i, entry in enumerate(entries)}
