"""What runs reached: final returns, curves and the table, from rows made by hand."""

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


def test_lowest_return_sees_finite_returns_only():
    rows = [row(0, 1, 3.0), row(0, 2, math.nan), row(0, 3, None), row(1, 1, -7)]
    assert summary.lowest_return(rows) == -7
    assert math.isnan(summary.lowest_return(rows[1:3]))


def test_final_returns_average_the_last_tenth_of_the_steps():
    rows = [row(5, step, float(step)) for step in range(10, 210, 10)]
    found = summary.final_returns(rows[::-1], floor=-1)
    # Beyond 90 % of 200 steps: 190 and 200.
    assert found.seeds.tolist() == [5]
    assert found.values.tolist() == [195.0]
    assert summary.final_returns(rows, floor=-1, last=0).values.tolist() == [200.0]
    assert summary.final_returns(rows, floor=-1, last=1).values.tolist() == [105.0]


def test_final_returns_count_a_diverged_seed_as_a_failure():
    rows = [row(s, step, 10.0 * s) for s in (2, 0, 1) for step in (10, 20)]
    rows[-1] = row(1, 20, math.nan, diverged_at=15)
    found = summary.final_returns(rows, floor=-99)
    assert found.seeds.tolist() == [0, 1, 2]
    assert found.values.tolist() == [0, -99, 20]
    assert found.diverged == {1: 15}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_final_returns_count_a_return_that_is_not_finite(value):
    rows = [row(0, 10, 1.0), row(0, 20, value), row(0, 30, 1.0)]
    assert summary.final_returns(rows, floor=-5).values.tolist() == [-5]
    assert summary.final_returns(rows, floor=-5).diverged == {0: 20}


def test_final_returns_keep_a_seed_that_diverged_before_any_return():
    rows = [row(0, 10, 1.0), row(1, 10, None, diverged_at=3)]
    assert summary.final_returns(rows, floor=-5).values.tolist() == [1, -5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "never evaluated"),
        ([row(0, 10, 1.0), row(3, 10, None)], "seed 3 was never"),
        ([row(0, 10, 1.0), row(0, 10, 2.0)], "two evaluations"),
    ],
)
def test_final_returns_refuse_rows_that_are_no_curve(rows, message):
    with pytest.raises(ValueError, match=message):
        summary.final_returns(rows, floor=0)


def test_curves_are_the_iqm_and_interval_of_each_step():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3))
    rows = [row(s, 10 * t, values[s, t]) for s in range(5) for t in range(3)]
    curve = summary.curves(rows, floor=-9, resamples=4000)
    assert curve.env_steps.tolist() == [0, 10, 20]
    for t in range(3):
        alone = stats.interval({"x": values[:, t]}, resamples=4000)
        assert curve.value[t] == pytest.approx(alone.value)
        # The same percentiles from the same number of draws of five values.
        assert curve.low[t] == pytest.approx(alone.low, abs=0.1)
        assert curve.high[t] == pytest.approx(alone.high, abs=0.1)


def test_curves_score_a_seed_with_the_floor_from_where_it_diverged():
    rows = [row(s, t, 1.0) for s in range(2) for t in (1, 2)]
    rows += [row(2, 1, 1.0), row(2, 2, math.nan, diverged_at=2)]
    curve = summary.curves(rows, floor=-8)
    assert curve.value.tolist() == [1, -2]  # the IQM of three is their mean


def test_curves_use_the_steps_that_all_seeds_have():
    rows = [row(0, 1, 0.0), row(0, 2, 0.0), row(1, 1, 2.0)]
    curve = summary.curves(rows, floor=0)
    assert curve.env_steps.tolist() == [1]
    assert np.isnan(curve.low).all()  # two seeds have no interval
    with pytest.raises(ValueError, match="in common"):
        summary.curves([row(0, 1, 0.0), row(1, 2, 0.0)], floor=0)


def test_curves_of_seeds_that_never_had_a_return_have_no_number():
    rows = [row(s, 1, math.nan, diverged_at=1) for s in range(4)]
    curve = summary.curves(rows, floor=math.nan)
    assert curve.env_steps.tolist() == [1]
    assert np.isnan(curve[1:]).all()


def test_summarise_shares_the_floor_within_an_environment_only():
    good = [row(s, 10, 10.0 + s) for s in range(4)]
    bad = [row(s, 10, -20.0) for s in range(4)]
    bad[0] = row(0, 10, math.nan, diverged_at=5)
    good[0] = row(0, 10, math.nan, diverged_at=5)
    other = [row(s, 10, -1000.0, env="else") for s in range(4)]
    timing = [time(0, 5, 0.5), time(0, 10, 1.0)]
    runs = [make_run("g", good, timing), make_run("b", bad), make_run("o", other)]
    found = summary.summarise(runs, resamples=500)
    assert found["g"]["iqm"] == 11.5  # of -20, 11, 12, 13
    assert found["g"]["low"] == -20
    assert (found["g"]["diverged"], found["g"]["seeds"]) == (1, 4)
    assert found["b"]["iqm"] == -20
    assert (found["g"]["seconds"], found["g"]["env_steps"]) == (1.0, 10)
    assert (found["o"]["env"], found["o"]["loss"]) == ("else", "mse")


def test_summarise_gives_no_interval_for_few_seeds_or_no_return_at_all():
    few = make_run("few", [row(s, 10, 1.0) for s in range(2)])
    none = make_run("none", [row(s, 9, math.nan, 9, env="x") for s in range(5)])
    found = summary.summarise([few, none])
    assert found["few"]["iqm"] == 1
    assert math.isnan(found["few"]["low"])
    assert math.isnan(found["none"]["iqm"])
    assert found["none"]["diverged"] == 5


def test_summarise_takes_the_last_seconds_of_a_run():
    rows = [row(s, 10, 1.0) for s in range(4)]
    # Rows of one program: its clock stands at its first seed and never goes back.
    timing = [time(0, 0, 3.0), time(0, 5, 3.5), time(0, 10, 4.25)]
    assert summary.summarise([make_run("r", rows, timing)])["r"]["seconds"] == 4.25
    assert summary.summarise([make_run("r", rows)])["r"]["seconds"] is None


def test_summarise_adds_the_seconds_of_chunks_that_came_one_after_the_other():
    rows = [row(s, 10, 1.0) for s in range(5)]
    steps, first_seeds = (5, 10), (0, 2, 4)
    timing = [time(seed, t, t / 2 + seed) for seed in first_seeds for t in steps]
    found = summary.summarise([make_run("r", rows, timing)])["r"]["seconds"]
    assert found == 5 + 7 + 9


def test_summarise_refuses_a_run_on_two_environments():
    rows = [row(0, 1, 0.0), row(0, 2, 0.0, env="else")]
    with pytest.raises(ValueError, match="exactly one"):
        summary.summarise([make_run("r", rows)])


def test_table_shows_every_number_in_aligned_columns():
    rows = [row(s, 10, 1234.5) for s in range(3)] + [row(3, 10, math.nan, 5)]
    few = [row(s, 10, 1.0) for s in range(2)]
    runs = [make_run("vagram", rows, [time(0, 10, 1.0)]), make_run("mle", few)]
    lines = summary.table(summary.summarise(runs)).splitlines()
    assert lines[0].split() == ["loss", "IQM", "95%", "interval", "diverged", "seconds"]
    assert lines[1].split() == ["vagram", "1234", "[1.00,", "1234]", "1/4", "1"]
    assert "under 3 seeds" in lines[2]
    assert lines[2].endswith(" -")  # nobody wrote down the seconds of that run
    assert len({len(line) for line in lines}) == 1


def test_cells_say_why_there_is_no_interval():
    numbers = {"iqm": math.nan, "low": math.nan, "high": math.nan, "diverged": 5}
    given = numbers | {"seeds": 5, "seconds": None}
    assert summary.cells(given) == ["-", "-", "5/5", "-"]
    assert summary.cells(given | {"seeds": 2})[1] == "under 3 seeds"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, "-"), (math.nan, "-"), (12345.6, "12346"), (-123.45, "-123.5")],
        *[(1.234, "1.23"), (0.01234, "0.012"), (0, "0.000"), (-0.00123, "-0.0012")],
    ],
)
def test_format_number_keeps_about_four_digits(value, text):
    assert summary.format_number(value) == text
