"""Our statistics against the package rliable, where it is installed.

It isn't among the tools for development: it is no longer maintained, needs pandas below
version 3, and brings seaborn, arch and statsmodels along. To run this file, install
`rliable==1.2.0` and `pandas<3` into an environment of their own.

rliable takes `[num_runs, num_tasks]` arrays, so all tasks have the same number of runs.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagram_jax.analysis import stats

pytest.importorskip("rliable")
if int(pytest.importorskip("pandas").__version__.split(".")[0]) >= 3:
    pytest.skip("rliable 1.2.0 needs pandas<3", allow_module_level=True)

from rliable import library, metrics

RESAMPLES = 20_000
# Where a task's values lie and how far they spread: no two are in the same units.
TASKS = {"pendulum": (-200, 60), "hopper": (1800, 700), "share": (0.4, 0.15)}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """The draws of rliable, which uses no generator but NumPy's global one."""
    monkeypatch.setattr(np.random, "choice", np.random.default_rng(7).choice)


def make_data(seed, num_seeds=10, ahead=0.0):
    """A task's name to `[num_seeds]` values, skewed, each task in units of its own."""
    rng = np.random.default_rng(seed)
    return {
        task: start + spread * (rng.gamma(2.0, size=num_seeds) + ahead)
        for task, (start, spread) in TASKS.items()
    }


def normalized(data):
    """In units that the tasks share; the scales still differ by a factor of four."""
    scales = zip(TASKS.items(), (1.0, 2.0, 4.0), strict=True)
    return {
        task: scale * (data[task] - start) / spread
        for (task, (start, spread)), scale in scales
    }


def to_array(data):
    """`[num_runs, num_tasks]`, the layout of rliable."""
    return np.stack(list(data.values()), axis=1)


@pytest.mark.parametrize("num_seeds", [3, 4, 5, 10, 13])
@pytest.mark.parametrize("prepare", [dict, normalized])
def test_iqm_equals_rliables(num_seeds, prepare):
    data = prepare(make_data(0, num_seeds))
    found = stats.interval(data, resamples=1)
    assert found.value == pytest.approx(metrics.aggregate_iqm(to_array(data)))


@pytest.mark.parametrize("prepare", [dict, normalized])
def test_interval_equals_rliables_stratified_bootstrap(prepare):
    data = prepare(make_data(1))
    found = stats.interval(data, resamples=RESAMPLES)
    value, ends = library.get_interval_estimates(
        {"x": to_array(data)},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=RESAMPLES,
    )
    assert found.value == pytest.approx(value["x"][0])
    width = found.high - found.low
    # Two bootstraps of 20 000 resamples: at most 1.5 % of the width in eight data sets.
    np.testing.assert_allclose(found[1:], ends["x"][:, 0], atol=0.03 * width)


def test_probability_of_improvement_equals_rliables():
    x, y = make_data(2, num_seeds=10, ahead=0.5), make_data(3, num_seeds=7)
    found = stats.probability_of_improvement(x, y, resamples=RESAMPLES)
    value, ends = library.get_interval_estimates(
        {"x,y": (to_array(x), to_array(y))},
        lambda *scores: np.array([metrics.probability_of_improvement(*scores)]),
        reps=2000,
    )
    assert found.value == pytest.approx(value["x,y"][0])
    width = found.high - found.low
    # 2000 resamples, as each takes rliable a rank test: at most 3 % in four data sets.
    np.testing.assert_allclose(found[1:], ends["x,y"][:, 0], atol=0.06 * width)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=6),
    st.lists(st.integers(0, 3), min_size=3, max_size=6),
)
def test_probability_of_improvement_counts_ties_as_rliable_does(x, y):
    x, y = np.array(x, float), np.array(y, float)
    found = stats.probability_of_improvement({"t": x}, {"t": y}, resamples=1)
    expected = metrics.probability_of_improvement(x[:, None], y[:, None])
    assert found.value == pytest.approx(expected)


def test_performance_profile_equals_rliables():
    data = normalized(make_data(4))
    thresholds = np.linspace(-1, 20, 30)
    found = stats.performance_profile(data, thresholds=thresholds, resamples=RESAMPLES)
    value, ends = library.create_performance_profile(
        {"x": to_array(data)}, thresholds, reps=5000
    )
    np.testing.assert_allclose(found.value, value["x"], rtol=1e-12)
    assert 0 < found.value.min() < 0.1
    assert found.value.max() == 1
    # A share moves in steps of one run of 30, and a percentile may fall on either side:
    # at one threshold of all those in four data sets it did.
    step = 1 / 30 + 1e-9
    np.testing.assert_allclose(found.low, ends["x"][0], atol=step)
    np.testing.assert_allclose(found.high, ends["x"][1], atol=step)
    assert np.mean(np.isclose(found.low, ends["x"][0])) > 0.8
    assert np.mean(np.isclose(found.high, ends["x"][1])) > 0.8
