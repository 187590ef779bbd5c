"""Statistics over the seeds of named tasks, with bootstrap intervals.

Comes in: a task's name to one value per seed. Goes out: the interquartile mean, the
probability of improvement and the performance profile, with their intervals. NumPy in
float64; nothing here knows a run or a file.

Data are named, never two-dimensional: with axes swapped, an interval over seeds turns
into one over tasks without any error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MIN_SEEDS = 3
"""An interval needs at least this many seeds."""

MIN_SEEDS_TO_COMPARE = 4
"""Results with fewer seeds aren't compared.

Measured on pairs of equal losses with normal, log-normal, bimodal and Student-t
returns: their intervals don't overlap in 10% of studies with 3 seeds, in 3% with 4 and
in 1% with 10.
"""

# Bounds the memory of a bootstrap, whatever the number of seeds and resamples.
_BLOCK = 2_000_000


class Interval(NamedTuple):
    """An estimate with its interval, all in the units of the data.

    Attributes:
      value: the estimate.
      low: lower end of the interval, NaN with too few seeds.
      high: upper end, likewise.
    """

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """How often a run is above each threshold, with a pointwise band.

    Attributes:
      thresholds: [T] ascending, in the units of the data.
      value: [T] share of runs above the threshold, the mean over tasks.
      low: [T] lower end of the pointwise interval.
      high: [T] upper end, likewise.
    """

    thresholds: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half, over the last axis.

        floor(n / 4) values are dropped at each end, none is weighted in part

    This is `scipy.stats.trim_mean(values, 0.25)`. Of four values it is the mean of the
    middle two; of three, the mean.

    Args:
      values: `[..., n]`, n at least 1. A NaN among them makes the result NaN.

    Returns:
      `[...]`, in the units of `values`.

    Raises:
      ValueError: there is no value.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"iqm: shape {values.shape}; at least one value is needed")
    count = values.shape[-1]
    cut = count // 4
    middle = np.sort(values, axis=-1)[..., cut : count - cut]
    # Sorting puts NaN last, where trimming would hide it.
    return np.where(np.isnan(values).any(axis=-1), np.nan, middle.mean(axis=-1))[()]


def interval(
    values_per_task: Mapping[str, np.ndarray],
    *,
    statistic: Callable[[np.ndarray], np.ndarray] = iqm,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A statistic over all seeds of all tasks, with its stratified-bootstrap interval.

    Seeds are drawn with replacement within each task; the percentiles of the resampled
    statistic are the interval (Agarwal et al. 2021, arXiv 2108.13264). How often a 95%
    interval of the interquartile mean covers the true one was measured on normal,
    log-normal, bimodal and Student-t returns, 2000 data sets each: 92 to 94% with 10
    seeds, 93 to 95% with 15 or 20, but 88 to 91% with 5 and 86 to 90% with 4, with one
    task and with four alike. Few seeds make it too short.

    Args:
      values_per_task: a task's name to `[num_seeds]` values, in the same units for
        all tasks. A task with more seeds weighs more.
      statistic: reduces the last axis of `[..., n]`.
      confidence: the share of data sets whose interval should cover the truth.
      resamples: how many bootstrap resamples.
      seed: of the resampling; the same seed gives the same interval.

    Returns:
      The statistic of the data and the two ends, in the units of the data.

    Raises:
      TypeError: not a mapping.
      ValueError: fewer than 3 seeds, an array that isn't `[num_seeds]`, a value that
        isn't finite, a statistic that doesn't reduce the last axis alone, a confidence
        that isn't between 0 and 1, or no resamples.
    """
    _check_bootstrap("interval", confidence, resamples)
    tasks = _check_tasks("interval", values_per_task)
    value = np.asarray(statistic(np.concatenate(tasks)))
    rng = np.random.default_rng(seed)
    draws = []
    for size in _blocks(resamples, sum(map(len, tasks))):
        draw = np.asarray(
            statistic(np.concatenate(_resample(rng, tasks, size), axis=-1))
        )
        if value.shape or draw.shape != (size,):
            raise ValueError(
                f"interval: statistic gave shape {draw.shape}; it must reduce the last "
                f"axis of [..., n] alone"
            )
        draws.append(draw)
    return Interval(float(value), *_ends(draws, confidence).tolist())


def compare(one: Interval, other: Interval) -> str:
    """Whether `one` differs significantly from `other`: their intervals don't overlap.

    Intervals that touch overlap. See `MIN_SEEDS_TO_COMPARE` for how often equal losses
    differ by this rule.

    Args:
      one: an estimate with its interval.
      other: another one, in the same units and of the same confidence.

    Returns:
      "above", "below" or "no significant difference".

    Raises:
      ValueError: an end is NaN, as it is with fewer than 3 seeds.
    """
    if np.isnan([one.low, one.high, other.low, other.high]).any():
        raise ValueError(
            f"compare: {one} and {other}; two intervals without NaN are accepted, "
            f"which need at least {MIN_SEEDS} seeds with a finite return"
        )
    if one.low > other.high:
        return "above"
    if one.high < other.low:
        return "below"
    return "no significant difference"


def probability_of_improvement(
    x: Mapping[str, np.ndarray],
    y: Mapping[str, np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How likely a seed of `x` is above a seed of `y`, averaged over tasks.

        mean over tasks of P(x > y) + P(x = y) / 2

    The seeds of both sides are resampled within each task (Agarwal et al. 2021, arXiv
    2108.13264). How often a 95% interval covers the true probability was measured at
    probabilities from 0.5 to 0.9 on normal, log-normal, bimodal and Student-t values,
    2000 data sets each. With four alike tasks: 91 to 95% with 10 seeds, 89 to 94% with
    5, 85 to 93% with 4. With one task it depends on the truth: at 0.5 it is 92 to 94%
    with 10 seeds and 89 to 94% with 4, at 0.9 only 78 to 86% and 50 to 59%. Where one
    side wins every pair the interval is a single point, which is no certainty.

    Args:
      x: a task's name to `[num_seeds]` values.
      y: the same tasks; the number of seeds may be another.
      confidence: the share of data sets whose interval should cover the truth.
      resamples: how many bootstrap resamples.
      seed: of the resampling.

    Returns:
      The probability and the two ends, each in [0, 1].

    Raises:
      TypeError: not mappings.
      ValueError: different tasks, or what `interval` would refuse.
    """
    _check_bootstrap("probability_of_improvement", confidence, resamples)
    xs = _check_tasks("probability_of_improvement", x)
    if set(x) != set(y):
        odd = ", ".join(sorted(set(x) ^ set(y)))
        raise ValueError(
            f"probability_of_improvement: only one side has the task {odd}"
        )
    ys = _check_tasks("probability_of_improvement", {task: y[task] for task in x})
    rng = np.random.default_rng(seed)
    pairs = max(len(a) * len(b) for a, b in zip(xs, ys, strict=True))
    draws = [
        _wins(_resample(rng, xs, size), _resample(rng, ys, size))
        for size in _blocks(resamples, pairs)
    ]
    return Interval(float(_wins(xs, ys)), *_ends(draws, confidence).tolist())


def performance_profile(
    values_per_task: Mapping[str, np.ndarray],
    *,
    thresholds: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Profile:
    """Which share of runs is above each threshold: the score distribution.

        mean over tasks of P(value > threshold)

    Seeds are resampled within each task (Agarwal et al. 2021, arXiv 2108.13264); every
    task weighs alike, whatever its number of seeds.

    How often the 95% band covers the true share was measured on normal values of tasks
    alike and apart, 2000 data sets each, as the mean over thresholds. Where the share
    is 0.2 to 0.8: with 4 tasks 94% with 20 seeds on each, 92% with 10, 86 to 90% with
    5, 82 to 87% with 4; with one task 92% with 20 seeds, 91% with 10, 78% with 4. Where
    it is 0.02 to 0.05 or 0.95 to 0.98: 72 to 75% with 4 tasks of 10 seeds, 30% with
    one. Where every run is above a threshold, or none, the band has no width, which is
    no certainty.

    Args:
      values_per_task: a task's name to `[num_seeds]` values, in units in which a
        threshold means the same on every task.
      thresholds: `[T]`, ascending.
      confidence: the share of data sets whose interval should cover the truth, at each
        threshold by itself.
      resamples: how many bootstrap resamples.
      seed: of the resampling; every threshold uses the same draws of seeds.

    Returns:
      The profile and its band, each share in [0, 1].

    Raises:
      TypeError: not a mapping.
      ValueError: thresholds that aren't one ascending sequence of finite numbers, or
        what `interval` would refuse.
    """
    _check_bootstrap("performance_profile", confidence, resamples)
    tasks = _check_tasks("performance_profile", values_per_task)
    levels = _check_thresholds(thresholds)
    rng = np.random.default_rng(seed)
    draws = [
        _share_above(_resample(rng, tasks, size), levels)
        for size in _blocks(resamples, len(levels) * max(map(len, tasks)))
    ]
    return Profile(levels, _share_above(tasks, levels), *_ends(draws, confidence))


def _check_tasks(where: str, values_per_task: Any) -> list[np.ndarray]:
    if not isinstance(values_per_task, Mapping):
        raise TypeError(
            f"{where}: {type(values_per_task).__name__}; a mapping is accepted, from "
            "the name of a task to one value per seed"
        )
    if not values_per_task:
        raise ValueError(f"{where}: no task; at least one is needed")
    tasks = []
    for task, given in values_per_task.items():
        values = np.asarray(given, dtype=np.float64)
        if values.ndim != 1 or len(values) < MIN_SEEDS:
            raise ValueError(
                f"{where}: task {task!r} has shape {list(values.shape)}; "
                f"[num_seeds] with at least {MIN_SEEDS} seeds is accepted"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{where}: task {task!r} has a value that isn't finite")
        tasks.append(values)
    return tasks


def _check_bootstrap(where: str, confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(
            f"{where}: confidence={confidence}; a share between 0 and 1 is accepted, "
            "such as 0.95"
        )
    if resamples < 1:
        raise ValueError(f"{where}: resamples={resamples}; at least 1 is needed")


def _check_thresholds(given: Any) -> np.ndarray:
    thresholds = np.asarray(given, dtype=np.float64)
    if thresholds.ndim != 1 or not thresholds.size:
        raise ValueError(
            f"performance_profile: thresholds of shape {list(thresholds.shape)}; [T] "
            "with at least one is accepted"
        )
    if not np.isfinite(thresholds).all() or (np.diff(thresholds) <= 0).any():
        raise ValueError(
            "performance_profile: thresholds must be finite and each above the one "
            f"before it; given: {thresholds.tolist()}"
        )
    return thresholds


def _blocks(resamples: int, width: int) -> list[int]:
    size = max(1, _BLOCK // width)
    whole, rest = divmod(resamples, size)
    return [size] * whole + [rest] * (rest > 0)


def _resample(rng, tasks: list[np.ndarray], size: int) -> list[np.ndarray]:
    """`size` resamples of the seeds of each task, `[size, num_seeds]` each."""
    return [task[rng.integers(0, len(task), (size, len(task)))] for task in tasks]


def _wins(xs: list[np.ndarray], ys: list[np.ndarray]) -> np.ndarray:
    pairs = [
        np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(xs, ys, strict=True)
    ]
    return np.mean([(1 + sign.mean(axis=(-2, -1))) / 2 for sign in pairs], axis=0)


def _share_above(tasks: list[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    shares = [
        (values[..., None, :] > thresholds[:, None]).mean(axis=-1) for values in tasks
    ]
    return np.mean(shares, axis=0)


def _ends(draws: list[np.ndarray], confidence: float) -> np.ndarray:
    """The percentiles at both ends, `[2, ...]`, of blocks of draws `[size, ...]`."""
    levels = [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.quantile(np.concatenate(draws), levels, axis=0)
