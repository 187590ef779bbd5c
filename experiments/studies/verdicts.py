"""What a study's numbers say in words, by one rule that knows no method by name.

Comes in: final returns of rivals under the same conditions. Goes out: comparisons of
one method with the strongest baseline, and sentences. The strongest is the one with
the highest interquartile mean of those seeds: chosen after the fact, which favours it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vagram_jax.analysis import stats, summary
from vagram_jax.analysis.stats import Interval

OUTCOMES = ("above", "not told apart from", "below")


class Comparison(NamedTuple):
    """A method and the strongest baseline under the same conditions.

    Attributes:
      where: the conditions, in words.
      method: its name.
      baseline: the strongest one's name.
      result: the method's interquartile mean and 95% interval.
      bar: the baseline's.
      probability: that a seed of the method is above one of the baseline, with its
        interval.
      outcome: one of `OUTCOMES`; told apart are intervals that don't overlap.
    """

    where: str
    method: str
    baseline: str
    result: Interval
    bar: Interval
    probability: Interval
    outcome: str


def against_strongest(
    finals: Mapping[str, np.ndarray],
    *,
    method: str,
    baselines: Sequence[str],
    where: str,
) -> Comparison:
    """A method against the strongest of some baselines.

    Args:
      finals: a rival's name to `[num_seeds]` final returns.
      method: one of them.
      baselines: others; those that are missing are left out.
      where: the conditions, in words.

    Returns:
      The comparison.

    Raises:
      ValueError: no baseline, or fewer than 3 seeds.
    """
    present = [name for name in baselines if name in finals]
    if not present:
        raise ValueError(f"against_strongest: {where}: none of {list(baselines)}")
    strongest = max(present, key=lambda name: stats.iqm(finals[name]))
    result, bar = (stats.interval({where: finals[n]}) for n in (method, strongest))
    return Comparison(
        where=where,
        method=method,
        baseline=strongest,
        result=result,
        bar=bar,
        probability=stats.probability_of_improvement(
            {where: finals[method]}, {where: finals[strongest]}
        ),
        outcome=outcome(result, bar),
    )


def outcome(one: Interval, other: Interval) -> str:
    """How two estimates lie to each other.

    Args:
      one: an estimate.
      other: another.

    Returns:
      One of `OUTCOMES`: told apart are intervals that don't overlap.
    """
    above, below = one.low > other.high, one.high < other.low
    return OUTCOMES[0 if above else 2 if below else 1]


def sentence(comparison: Comparison) -> str:
    """A comparison in words.

    Args:
      comparison: from `against_strongest`.

    Returns:
      One sentence.
    """
    method, bar = (span(i) for i in (comparison.result, comparison.bar))
    where = f"{comparison.where}: " if comparison.where else ""
    return (
        f"{where}{comparison.method}, {method}, is {comparison.outcome} the strongest "
        f"baseline, {comparison.baseline}, {bar}; a seed of it is above one of the "
        f"baseline with probability {span(comparison.probability)}."
    )


def overall(comparisons: Sequence[Comparison]) -> str:
    """How often each outcome came.

    Args:
      comparisons: of one method.

    Returns:
      One sentence.
    """
    counts = {
        outcome: sum(c.outcome == outcome for c in comparisons) for outcome in OUTCOMES
    }
    said = ", ".join(f"{count} times {outcome}" for outcome, count in counts.items())
    method, total = comparisons[0].method, len(comparisons)
    settings = "1 setting" if total == 1 else f"{total} settings"
    return f"In {settings} {method} is {said} the strongest baseline."


def span(interval: Interval) -> str:
    """An estimate with its interval, as text.

    Args:
      interval: the estimate.

    Returns:
      As `-12.3 [-20.0, -5.0]`.
    """
    value, low, high = map(summary.format_number, interval)
    return f"{value} [{low}, {high}]"
