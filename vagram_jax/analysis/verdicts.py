"""The rule by which results are compared, and sentences that describe comparisons.

Two results differ significantly if their 95% intervals don't overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vagram_jax.analysis import stats, summary
from vagram_jax.analysis.stats import Interval

BETTER, UNDECIDED, WORSE = "better", "not significantly different", "worse"
"""The outcomes of a comparison, see `outcome`."""

Label = str | int | float
Setting = tuple[tuple[str, Label], ...]
"""Pairs of column and value: the conditions under which methods are compared."""


class Comparison(NamedTuple):
    """A method and the strongest baseline in the same setting.

    Attributes:
      setting: the conditions.
      method: the name of the method.
      baseline: the name of the strongest baseline.
      method_interval: IQM and 95% interval of the method.
      baseline_interval: IQM and 95% interval of the baseline.
      probability: that a seed of the method is better than a seed of the baseline.
      outcome: `BETTER`, `UNDECIDED` or `WORSE`.
    """

    setting: Setting
    method: str
    baseline: str
    method_interval: Interval
    baseline_interval: Interval
    probability: Interval
    outcome: str


def outcome(one: Interval, other: Interval, *, higher_is_better: bool = True) -> str:
    """Whether one estimate is significantly better or worse than another.

    Args:
      one: an estimate with its interval, see `stats.compare`. Intervals with NaN never
        differ.
      other: another one.
      higher_is_better: False for errors.

    Returns:
      `BETTER`, `UNDECIDED` or `WORSE`.
    """
    if math.isnan(one.low + one.high + other.low + other.high):
        return UNDECIDED
    position = stats.compare(one, other)
    if position not in ("above", "below"):
        return UNDECIDED
    return BETTER if (position == "above") == higher_is_better else WORSE


def sentence(comparison: Comparison) -> str:
    """Describes a comparison in one sentence.

    Args:
      comparison: from `Study.compare`.

    Returns:
      The sentence.
    """
    verb = {
        BETTER: "beats",
        WORSE: "is worse than",
        UNDECIDED: "does not differ significantly from",
    }[comparison.outcome]
    ours, theirs = map(text, (comparison.method_interval, comparison.baseline_interval))
    where = f"{setting_text(comparison.setting)}: " if comparison.setting else ""
    return (
        f"{where}{comparison.method} ({ours}) {verb} the strongest baseline, "
        f"{comparison.baseline} ({theirs}). A seed of {comparison.method} is better "
        f"with probability {text(comparison.probability)}."
    )


def overall(comparisons: Sequence[Comparison]) -> str:
    """Counts the outcomes of the comparisons of one method.

    Args:
      comparisons: at least one.

    Returns:
      One sentence.
    """
    better, undecided, worse = (
        sum(comparison.outcome == kind for comparison in comparisons)
        for kind in (BETTER, UNDECIDED, WORSE)
    )
    total = len(comparisons)
    return (
        f"{comparisons[0].method} beats the strongest baseline in {better} of {total} "
        f"{'setting' if total == 1 else 'settings'}, is worse in {worse}, and does not "
        f"differ significantly in {undecided}."
    )


def text(interval: Interval) -> str:
    """An estimate with its interval as text.

    Args:
      interval: the estimate.

    Returns:
      Text such as `-12.3 [-20.0, -5.0]`.
    """
    value, low, high = map(summary.format_number, interval)
    return f"{value} [{low}, {high}]"


def setting_text(setting: Setting) -> str:
    """A setting as text.

    Args:
      setting: pairs of column and value.

    Returns:
      Text such as `task pendulum, hidden 16`.
    """
    return ", ".join(f"{column} {value}" for column, value in setting)
