"""Final returns, curves and tables of runs with rows that are written by hand."""

import dataclasses
import math

import numpy as np
import pytest

from vagram_jax.analysis import stats, summary
from vagram_jax.storage.results import Run


def row(seed, env_steps, value, diverged_at=None, **more):
    return {
        "env": "toy",
        "loss": "mse",
        "seed": seed,
        "env_steps": env_steps,
        "return": value,
        "diverged_at": diverged_at,
        **more,
    }


def make_run(name, rows, timing=()):
    return Run(name=name, config={}, record={}, metrics=rows, timing=timing)


def time(seed, env_steps, seconds):
    return {"seed": seed, "env_steps": env_steps, "wall_time_s": seconds}


def test_warnings_count_models_that_never_improved_and_dropped_transitions():
    model = [
        {"seed": seed, "env_steps": step, "improved": improved}
        for seed, counts in enumerate([(0, 0), (0, 3), (5, 0)])
        for step, improved in enumerate(counts)
    ]
    metrics = [row(0, 100, 1.0) | {"dropped": 1}, row(1, 100, 1.0) | {"dropped": 5}]
    run = make_run("a", metrics)
    assert summary.warnings(run) == ["5% dropped"]
    run = dataclasses.replace(run, model=model, metrics=metrics[:1])
    assert summary.warnings(run) == ["1 untrained"]
    assert summary.warnings(make_run("b", [row(0, 0, 1.0)])) == []


def test_lowest_return_ignores_returns_that_are_not_finite():
    rows = [row(0, 1, 3.0), row(0, 2, math.nan), row(0, 3, None), row(1, 1, -7)]
    assert summary.lowest_return(rows) == -7
    assert math.isnan(summary.lowest_return(rows[1:3]))


def test_final_returns_average_the_last_tenth_of_the_steps():
    rows = [row(5, step, float(step)) for step in range(10, 210, 10)]
    finals = summary.final_returns(rows[::-1], floor=-1)
    # The evaluations after 90% of 200 steps are those at 190 and 200.
    assert finals.seeds.tolist() == [5]
    assert finals.values.tolist() == [195.0]
    assert summary.final_returns(rows, floor=-1, last=0).values.tolist() == [200.0]
    assert summary.final_returns(rows, floor=-1, last=1).values.tolist() == [105.0]
    with pytest.raises(ValueError, match="last=2; between 0 and 1"):
        summary.final_returns(rows, floor=-1, last=2)


def test_final_returns_give_a_diverged_seed_the_floor():
    rows = [row(s, step, 10.0 * s) for s in (2, 0, 1) for step in (10, 20)]
    rows[-1] = row(1, 20, math.nan, diverged_at=15)
    rows += [row(3, 10, None, diverged_at=3)]  # before its first evaluation
    finals = summary.final_returns(rows, floor=-99)
    assert finals.seeds.tolist() == [0, 1, 2, 3]
    assert finals.values.tolist() == [0, -99, 20, -99]
    assert finals.diverged == {1: 15, 3: 3}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_final_returns_give_a_last_return_that_is_not_finite_the_floor(value):
    rows = [row(0, 10, 1.0), row(0, 20, 1.0), row(0, 30, value)]
    finals = summary.final_returns(rows, floor=-5)
    assert finals.values.tolist() == [-5]
    assert finals.diverged == {0: 30}


def test_final_returns_ignore_an_early_return_that_is_not_finite():
    rows = [row(0, 10, math.nan), row(0, 20, 1.0), row(0, 30, 2.0)]
    finals = summary.final_returns(rows, floor=-5)
    assert finals.values.tolist() == [2.0]
    assert not finals.diverged


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "never evaluated"),
        ([row(0, 10, 1.0), row(3, 10, None)], "seed 3 was never"),
        ([row(0, 10, 1.0), row(0, 10, 2.0)], "two evaluations"),
    ],
)
def test_final_returns_reject_missing_and_double_evaluations(rows, message):
    with pytest.raises(ValueError, match=message):
        summary.final_returns(rows, floor=0)


def test_curves_have_the_iqm_and_interval_of_each_step():
    values = np.random.default_rng(0).normal(size=(5, 3))
    rows = [row(s, 10 * t, values[s, t]) for s in range(5) for t in range(3)]
    curve = summary.curves(rows, floor=-9, resamples=500)
    assert curve.env_steps.tolist() == [0, 10, 20]
    for t in range(3):
        expected = stats.interval({"x": values[:, t]}, resamples=500)
        assert (curve.value[t], curve.low[t], curve.high[t]) == expected


def test_curves_give_a_seed_the_floor_from_the_step_at_which_it_diverged():
    rows = [row(s, t, 1.0) for s in range(2) for t in (1, 2)]
    rows += [row(2, 1, 1.0), row(2, 2, math.nan, diverged_at=2)]
    curve = summary.curves(rows, floor=-8)
    assert curve.value.tolist() == [1, -2]  # the IQM of three values is their mean
    rows = [row(s, 1, math.nan, diverged_at=1) for s in range(4)]
    curve = summary.curves(rows, floor=math.nan)  # no run has a return
    assert curve.env_steps.tolist() == [1]
    assert np.isnan(curve[1:]).all()


def test_curves_have_the_steps_that_all_seeds_share():
    rows = [row(0, 1, 0.0), row(0, 2, 0.0), row(1, 1, 2.0)]
    curve = summary.curves(rows, floor=0)
    assert curve.env_steps.tolist() == [1]
    assert np.isnan(curve.low).all()  # two seeds have no interval
    with pytest.raises(ValueError, match="in common"):
        summary.curves([row(0, 1, 0.0), row(1, 2, 0.0)], floor=0)


def test_summarize_uses_one_floor_per_environment():
    good = [row(s, 10, 10.0 + s) for s in range(4)]
    bad = [row(s, 10, -20.0) for s in range(4)]
    bad[0] = row(0, 10, math.nan, diverged_at=5)
    good[0] = row(0, 10, math.nan, diverged_at=5)
    other = [row(s, 10, -1000.0, env="other") for s in range(4)]
    runs = [make_run("g", good), make_run("b", bad), make_run("o", other)]
    assert summary.finals_per_run(runs)["g"].values.tolist() == [-20, 11, 12, 13]
    summaries = summary.summarize(runs, resamples=500)
    assert summaries["g"]["iqm"] == 11.5
    assert summaries["g"]["low"] == -20
    assert (summaries["g"]["diverged"], summaries["g"]["seeds"]) == (1, 4)
    assert summaries["g"]["env_steps"] == 10
    assert summaries["b"]["iqm"] == -20
    assert (summaries["o"]["env"], summaries["o"]["loss"]) == ("other", "mse")


def test_summarize_gives_no_interval_for_few_seeds_or_no_return():
    few = make_run("few", [row(s, 10, 1.0) for s in range(2)])
    none = make_run("none", [row(s, 9, math.nan, 9, env="x") for s in range(5)])
    summaries = summary.summarize([few, none])
    assert summaries["few"]["iqm"] == 1
    assert math.isnan(summaries["few"]["low"])
    assert math.isnan(summaries["none"]["iqm"])
    assert summaries["none"]["diverged"] == 5


def test_summarize_adds_the_last_seconds_of_each_chunk_of_seeds():
    rows = [row(s, 10, 1.0) for s in range(5)]
    timing = [time(seed, t, t / 2 + seed) for seed in (0, 2, 4) for t in (5, 10)]
    runs = [make_run("chunks", rows, timing), make_run("unknown", rows)]
    runs += [make_run("one program", rows, timing[:2])]
    seconds = {n: r["seconds"] for n, r in summary.summarize(runs).items()}
    assert seconds == {"chunks": 5 + 7 + 9, "unknown": None, "one program": 5}


def test_summarize_rejects_a_run_with_two_environments():
    rows = [row(0, 1, 0.0), row(0, 2, 0.0, env="other")]
    with pytest.raises(ValueError, match="exactly one"):
        summary.summarize([make_run("r", rows)])


def test_table_has_aligned_columns():
    rows = [row(s, 10, 1234.5) for s in range(3)] + [row(3, 10, math.nan, 5)]
    few = [row(s, 10, 1.0) for s in range(2)]
    runs = [make_run("vagram", rows, [time(0, 10, 1.0)]), make_run("mle", few)]
    lines = summary.table(summary.summarize(runs)).splitlines()
    assert lines[0].split() == ["run", "IQM", "95%", "interval", "diverged", "seconds"]
    assert lines[1].split() == ["vagram", "1234", "[1.00,", "1234]", "1/4", "1"]
    assert "under 3 seeds" in lines[2]
    assert lines[2].endswith(" -")  # the seconds are unknown
    assert len({len(line) for line in lines}) == 1


def test_cells_explain_a_missing_interval():
    numbers = {"iqm": math.nan, "low": math.nan, "high": math.nan, "diverged": 5}
    numbers |= {"seeds": 5, "seconds": None}
    assert summary.cells(numbers) == ["-", "-", "5/5", "-"]
    assert summary.cells(numbers | {"seeds": 2})[1] == "under 3 seeds"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, "-"), (math.nan, "-"), (12345.6, "12346"), (-123.45, "-123.5")],
        *[(1.234, "1.23"), (0.01234, "0.012"), (0, "0.000"), (-0.00123, "-0.0012")],
    ],
)
def test_format_number_keeps_about_four_digits(value, text):
    assert summary.format_number(value) == text


def test_format_interval_has_the_value_and_both_ends():
    assert summary.format_interval(stats.Interval(-12.3, -20, -5)) == (
        "-12.30 [-20.00, -5.00]"
    )
