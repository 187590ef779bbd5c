"""Statistics over seeds and tasks, with bootstrap intervals.

The functions take mappings from a task's name to one value per seed, and compute in
float64 with NumPy. Data are named rather than two-dimensional because swapped axes
would silently turn an interval over seeds into one over tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray
"""Numbers along one axis; they are converted to float64."""

MIN_SEEDS = 3
"""An interval needs at least this many seeds."""

MIN_SEEDS_TO_COMPARE = 4
"""Results with fewer seeds aren't compared.

Measured on pairs of equal losses with normal, log-normal, bimodal and Student-t
returns: their intervals don't overlap in 10% of studies with 3 seeds, in 3% with 4 and
in 1% with 10.
"""

# Number of values in one block of resamples, which bounds the memory of a bootstrap.
_BLOCK = 2_000_000


class Interval(NamedTuple):
    """An estimate with its interval, in the units of the data.

    Attributes:
      value: the estimate.
      low: lower end of the interval, NaN with too few seeds.
      high: upper end of the interval, NaN with too few seeds.
    """

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """The share of runs above each threshold, with a pointwise band.

    Attributes:
      thresholds: `[T]`, ascending, in the units of the data.
      value: `[T]` shares, averaged over tasks.
      low: `[T]` lower ends of the pointwise intervals.
      high: `[T]` upper ends of the pointwise intervals.
    """

    thresholds: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def iqm(values: np.ndarray) -> np.ndarray:
    """Returns the interquartile mean over the last axis.

    The floor(n / 4) lowest and highest of n values are dropped and the others averaged,
    as in `scipy.stats.trim_mean(values, 0.25)`. With four values this is the mean of
    the middle two; with three it is the mean.

    Args:
      values: `[..., n]`, n at least 1. A NaN makes the result NaN.

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
    # Sorting puts NaN last, where trimming would drop it.
    return np.where(np.isnan(values).any(axis=-1), np.nan, middle.mean(axis=-1))[()]


def interval(
    values_per_task: Mapping[str, Values],
    *,
    statistic: Callable[[np.ndarray], np.ndarray] = iqm,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns a statistic over all seeds of all tasks with its bootstrap interval.

    The bootstrap is stratified: it resamples seeds with replacement within each task,
    and the interval consists of percentiles of the resampled statistic (Agarwal et al.
    2021, arXiv 2108.13264).

    Few seeds make the interval too narrow. With 2000 data sets each of normal,
    log-normal, bimodal and Student-t returns, a 95% interval of the interquartile mean
    covered the true value in 92 to 94% of data sets with 10 seeds, in 93 to 95% with 15
    or 20, in 88 to 91% with 5 and in 86 to 90% with 4, both for one task and for four
    equal tasks.

    Args:
      values_per_task: task to `[num_seeds]` values, in the same units for all tasks.
        Every seed has the same weight, so a task with more seeds has more.
      statistic: reduces the last axis of `[..., n]`.
      confidence: nominal coverage of the interval.
      resamples: number of bootstrap resamples.
      seed: of the resampling.

    Returns:
      The statistic of the data and both ends, in the units of the data.

    Raises:
      TypeError: `values_per_task` isn't a mapping.
      ValueError: fewer than 3 seeds, an array that isn't `[num_seeds]`, a value that
        isn't finite, a statistic that doesn't reduce only the last axis, a confidence
        outside (0, 1), or no resamples.
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
                f"interval: statistic returned shape {draw.shape}; it must reduce only "
                "the last axis of [..., n]"
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
    x: Mapping[str, Values],
    y: Mapping[str, Values],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns the probability that a seed of `x` is above a seed of `y`.

        mean over tasks of P(x > y) + P(x = y) / 2

    The seeds of both sides are resampled within each task (Agarwal et al. 2021, arXiv
    2108.13264).

    Coverage of a 95% interval, measured with 2000 data sets each of normal, log-normal,
    bimodal and Student-t values at true probabilities from 0.5 to 0.9: with four equal
    tasks 91 to 95% with 10 seeds, 89 to 94% with 5 and 85 to 93% with 4. With one task
    it depends on the true probability: at 0.5 it is 92 to 94% with 10 seeds and 89 to
    94% with 4, at 0.9 only 78 to 86% and 50 to 59%. If one side wins every pair, the
    interval is a single point, which doesn't mean certainty.

    Args:
      x: task to `[num_seeds]` values.
      y: the same tasks; the numbers of seeds may differ from those of `x`.
      confidence: nominal coverage of the interval.
      resamples: number of bootstrap resamples.
      seed: of the resampling.

    Returns:
      The probability and both ends, each in [0, 1].

    Raises:
      TypeError: `x` or `y` isn't a mapping.
      ValueError: different tasks, or an error of `interval`.
    """
    _check_bootstrap("probability_of_improvement", confidence, resamples)
    xs = _check_tasks("probability_of_improvement", x)
    if set(x) != set(y):
        odd = ", ".join(sorted(set(x) ^ set(y)))
        raise ValueError(
            f"probability_of_improvement: task {odd} is only in one of x and y"
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
    values_per_task: Mapping[str, Values],
    *,
    thresholds: Values,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Profile:
    """Returns the share of runs above each threshold, also called score distribution.

        mean over tasks of P(value > threshold)

    Seeds are resampled within each task (Agarwal et al. 2021, arXiv 2108.13264). Every
    task has the same weight, whatever its number of seeds.

    Coverage of the 95% band, measured with 2000 data sets of normal values on equal and
    on different tasks and averaged over thresholds: where the share is 0.2 to 0.8, with
    4 tasks 94% with 20 seeds on each, 92% with 10, 86 to 90% with 5 and 82 to 87% with
    4, and with one task 92% with 20 seeds, 91% with 10 and 78% with 4; where it is 0.02
    to 0.05 or 0.95 to 0.98, 72 to 75% with 4 tasks of 10 seeds and 30% with one. Where
    all runs or none are above a threshold, the band has no width, which doesn't mean
    certainty.

    Args:
      values_per_task: task to `[num_seeds]` values, in units in which a threshold means
        the same on every task.
      thresholds: `[T]`, ascending.
      confidence: nominal coverage of the interval at each threshold.
      resamples: number of bootstrap resamples.
      seed: of the resampling; every threshold uses the same draws of seeds.

    Returns:
      The profile and its band, each share in [0, 1].

    Raises:
      TypeError: `values_per_task` isn't a mapping.
      ValueError: thresholds that aren't one ascending sequence of finite numbers, or an
        error of `interval`.
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
            f"{where}: {type(values_per_task).__name__}; a mapping from a task's name "
            "to one value per seed is accepted"
        )
    if not values_per_task:
        raise ValueError(f"{where}: no task; at least one is needed")
    tasks = []
    for task, values in values_per_task.items():
        values = np.asarray(values, dtype=np.float64)
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
            f"{where}: confidence={confidence}; a number between 0 and 1 is accepted, "
            "such as 0.95"
        )
    if resamples < 1:
        raise ValueError(f"{where}: resamples={resamples}; at least 1 is needed")


def _check_thresholds(thresholds: Any) -> np.ndarray:
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.ndim != 1 or not thresholds.size:
        raise ValueError(
            f"performance_profile: thresholds of shape {list(thresholds.shape)}; [T] "
            "with at least one threshold is accepted"
        )
    if not np.isfinite(thresholds).all() or (np.diff(thresholds) <= 0).any():
        raise ValueError(
            f"performance_profile: thresholds={thresholds.tolist()}; finite numbers in "
            "ascending order are accepted"
        )
    return thresholds


def _blocks(resamples: int, width: int) -> list[int]:
    """Splits `resamples` of `width` values each into blocks of at most `_BLOCK`."""
    size = max(1, _BLOCK // width)
    full, rest = divmod(resamples, size)
    return [size] * full + [rest] * (rest > 0)


def _resample(rng, tasks: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Draws `size` resamples of the seeds of each task, `[size, num_seeds]` each."""
    return [task[rng.integers(0, len(task), (size, len(task)))] for task in tasks]


def _wins(xs: list[np.ndarray], ys: list[np.ndarray]) -> np.ndarray:
    """Share of pairs that x wins, ties counted half, averaged over tasks."""
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
    """Percentiles `[2, ...]` at both ends of blocks of draws `[size, ...]`."""
    levels = [(1 - confidence) / 2, (1 + confidence) / 2]
    return np.quantile(np.concatenate(draws), levels, axis=0)
