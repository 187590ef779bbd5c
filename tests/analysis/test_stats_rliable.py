"""Our statistics against the package rliable, if it is installed.

rliable isn't a development dependency because it is no longer maintained, needs pandas
below version 3, and depends on seaborn, arch and statsmodels. To run this file, install
`rliable==1.2.0` and `pandas<3` into a separate environment.

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
# The offset and the scale of each task's values, which differ in units.
TASKS = {"pendulum": (-200, 60), "hopper": (1800, 700), "share": (0.4, 0.15)}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Seeds rliable, which uses NumPy's global generator."""
    monkeypatch.setattr(np.random, "choice", np.random.default_rng(7).choice)


def make_data(seed, num_seeds=10, advantage=0.0):
    """Returns task to `[num_seeds]` skewed values, in different units for each task."""
    rng = np.random.default_rng(seed)
    return {
        task: start + spread * (rng.gamma(2.0, size=num_seeds) + advantage)
        for task, (start, spread) in TASKS.items()
    }


def normalized(data):
    """Converts to common units; the scales still differ by a factor of four."""
    scales = zip(TASKS.items(), (1.0, 2.0, 4.0), strict=True)
    return {
        task: scale * (data[task] - start) / spread
        for (task, (start, spread)), scale in scales
    }


def to_array(data):
    """Returns `[num_runs, num_tasks]`, the layout of rliable."""
    return np.stack(list(data.values()), axis=1)


@pytest.mark.parametrize("num_seeds", [3, 4, 5, 10, 13])
@pytest.mark.parametrize("prepare", [dict, normalized])
def test_iqm_equals_rliable(num_seeds, prepare):
    data = prepare(make_data(0, num_seeds))
    result = stats.interval(data, resamples=1)
    assert result.value == pytest.approx(metrics.aggregate_iqm(to_array(data)))


@pytest.mark.parametrize("prepare", [dict, normalized])
def test_interval_equals_rliable_stratified_bootstrap(prepare):
    data = prepare(make_data(1))
    result = stats.interval(data, resamples=RESAMPLES)
    value, ends = library.get_interval_estimates(
        {"x": to_array(data)},
        lambda scores: np.array([metrics.aggregate_iqm(scores)]),
        reps=RESAMPLES,
    )
    assert result.value == pytest.approx(value["x"][0])
    width = result.high - result.low
    # Two bootstraps of 20 000 resamples: at most 1.5% of the width in eight data sets.
    np.testing.assert_allclose(result[1:], ends["x"][:, 0], atol=0.03 * width)


def test_probability_of_improvement_equals_rliable():
    x, y = make_data(2, num_seeds=10, advantage=0.5), make_data(3, num_seeds=7)
    result = stats.probability_of_improvement(x, y, resamples=RESAMPLES)
    value, ends = library.get_interval_estimates(
        {"x,y": (to_array(x), to_array(y))},
        lambda *scores: np.array([metrics.probability_of_improvement(*scores)]),
        reps=2000,
    )
    assert result.value == pytest.approx(value["x,y"][0])
    width = result.high - result.low
    # Only 2000 resamples, because rliable is slow: at most 3% in four data sets.
    np.testing.assert_allclose(result[1:], ends["x,y"][:, 0], atol=0.06 * width)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=3, max_size=6),
    st.lists(st.integers(0, 3), min_size=3, max_size=6),
)
def test_probability_of_improvement_counts_ties_as_rliable_does(x, y):
    x, y = np.array(x, float), np.array(y, float)
    result = stats.probability_of_improvement({"t": x}, {"t": y}, resamples=1)
    expected = metrics.probability_of_improvement(x[:, None], y[:, None])
    assert result.value == pytest.approx(expected)


def test_performance_profile_equals_rliable():
    data = normalized(make_data(4))
    thresholds = np.linspace(-1, 20, 30)
    result = stats.performance_profile(data, thresholds=thresholds, resamples=RESAMPLES)
    value, ends = library.create_performance_profile(
        {"x": to_array(data)}, thresholds, reps=5000
    )
    np.testing.assert_allclose(result.value, value["x"], rtol=1e-12)
    assert 0 < result.value.min() < 0.1
    assert result.value.max() == 1
    # Shares are multiples of 1/30, and the percentiles of two bootstraps may differ by
    # one step, as they did at one threshold of all those in four data sets.
    step = 1 / 30 + 1e-9
    np.testing.assert_allclose(result.low, ends["x"][0], atol=step)
    np.testing.assert_allclose(result.high, ends["x"][1], atol=step)
    assert np.mean(np.isclose(result.low, ends["x"][0])) > 0.8
    assert np.mean(np.isclose(result.high, ends["x"][1])) > 0.8
