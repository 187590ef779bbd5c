"""The rule by which results are compared, and the sentences about comparisons."""

import math

import pytest

from vagram_jax.analysis import verdicts
from vagram_jax.analysis.stats import Interval

HIGH, MIDDLE, LOW = Interval(10, 8, 12), Interval(7, 5, 9), Interval(2, 1, 4)
UNKNOWN = Interval(3, math.nan, math.nan)


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        (HIGH, LOW, verdicts.BETTER),
        (LOW, HIGH, verdicts.WORSE),
        (HIGH, MIDDLE, verdicts.UNDECIDED),
        (Interval(2, 1, 3), Interval(4, 3, 5), verdicts.UNDECIDED),  # they touch
        (UNKNOWN, HIGH, verdicts.UNDECIDED),
    ],
)
def test_outcome_is_significant_if_intervals_do_not_overlap(one, other, outcome):
    assert verdicts.outcome(one, other) == outcome
    opposite = {verdicts.BETTER: verdicts.WORSE, verdicts.WORSE: verdicts.BETTER}
    expected = opposite.get(outcome, outcome)
    assert verdicts.outcome(one, other, higher_is_better=False) == expected


def comparison(outcome):
    setting = (("task", "spring"), ("hidden", 16))
    return verdicts.Comparison(setting, "ours", "sac", HIGH, LOW, MIDDLE, outcome)


def test_sentence_names_both_sides_with_their_intervals():
    assert verdicts.sentence(comparison(verdicts.BETTER)) == (
        "task spring, hidden 16: ours (10.00 [8.00, 12.00]) beats the strongest "
        "baseline, sac (2.00 [1.00, 4.00]). A seed of ours is better with probability "
        "7.00 [5.00, 9.00]."
    )
    undecided = verdicts.sentence(comparison(verdicts.UNDECIDED))
    assert "does not differ significantly from the strongest baseline" in undecided
    assert "is worse than" in verdicts.sentence(comparison(verdicts.WORSE))


def test_overall_counts_outcomes():
    outcomes = [verdicts.BETTER, verdicts.BETTER, verdicts.WORSE, verdicts.UNDECIDED]
    assert verdicts.overall([comparison(outcome) for outcome in outcomes]) == (
        "ours beats the strongest baseline in 2 of 4 settings, is worse in 1, and does "
        "not differ significantly in 1."
    )
