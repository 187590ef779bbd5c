"""The normaliser: its moments against NumPy float64, and what it makes of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vagram_jax import dynamics
from vagram_jax.types import Transition

# Sums of some hundred float32, each rounded to 6e-8.
FLOAT32 = 1e-6
BOTH = {"normalize_state": True, "normalize_reward": True}


def moments(values, where=None):
    values = np.asarray(values, np.float32)
    counted = np.ones(len(values), bool) if where is None else where
    return jax.jit(dynamics.moments)(values, counted), counted


def test_moments_equal_those_of_numpy():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(500, 4))
    (mean, std), counted = moments(values)
    wanted_mean, wanted_std = oracles.moments(np.float32(values), counted)
    np.testing.assert_allclose(mean, wanted_mean, rtol=FLOAT32)
    np.testing.assert_allclose(std, wanted_std, rtol=FLOAT32)


@pytest.mark.parametrize("offset", [1e4, -1e6])
def test_moments_are_accurate_with_a_large_offset(offset):
    values = np.random.default_rng(1).normal(offset, 2.0, size=(500, 2))
    (mean, std), counted = moments(values)
    wanted_mean, wanted_std = oracles.moments(np.float32(values), counted)
    # The mean is rounded to a float32 that is near the offset; the deviation is not.
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-7)
    np.testing.assert_allclose(std, wanted_std, rtol=FLOAT32)


@pytest.mark.parametrize("value", [0.0, 0.26, -1e6, 1e-12])
def test_moments_give_a_constant_dimension_a_deviation_of_one(value):
    (mean, std), _ = moments(np.full((50, 1), value))
    np.testing.assert_array_equal(mean, np.float32([value]))
    np.testing.assert_array_equal(std, [1.0])


def test_moments_of_a_single_row_are_that_row_and_one():
    (mean, std), _ = moments([[1.5, -2.0]])
    np.testing.assert_array_equal(mean, [1.5, -2.0])
    np.testing.assert_array_equal(std, [1.0, 1.0])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_moments_ignore_rows_that_do_not_count(garbage):
    values = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    where = np.random.default_rng(3).uniform(size=40) < 0.6
    where[0] = False  # the first row must be no origin
    expected, _ = moments(values, where)
    for x, y in zip(
        moments(np.where(where[:, None], values, garbage), where)[0],
        expected,
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    mean, std = oracles.moments(values, where)
    # Means near zero have the rounding of the values that they are of, near one.
    np.testing.assert_allclose(expected[0], mean, atol=FLOAT32)
    np.testing.assert_allclose(expected[1], std, rtol=FLOAT32)


def make_data(seed=4):
    fields = oracles.random_batch(seed, leading=(200,))
    fields["next_obs"] = fields["obs"] + np.array([0.1, 5.0, 0.0]) * fields["next_obs"]
    fields["reward"] = 7.0 + 3.0 * fields["reward"]
    return Transition(**fields)


def make_params(**options):
    config = dynamics.DynamicsConfig(
        hidden=(4,), num_members=2, num_elites=1, head="gaussian", **options
    )
    return dynamics.init_dynamics(
        jax.random.key(0), obs_dim=3, action_dim=2, config=config
    )


def fit(params, data, where=None):
    counted = np.ones(len(data.reward), bool) if where is None else where
    return jax.jit(dynamics.fit_normalizer)(params, data, counted)


def targets_of(data):
    return np.column_stack([data.next_obs - data.obs, data.reward])


def test_targets_are_the_state_difference_and_the_reward_last():
    data = make_data()
    actual = dynamics.targets(jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(actual, targets_of(data), rtol=FLOAT32, atol=1e-6)


def test_fit_normalizer_takes_the_moments_of_inputs_that_count():
    data, where = make_data(), np.arange(200) % 3 > 0
    actual = fit(make_params(), data, where).normalizer
    mean, std = oracles.moments(np.hstack([data.obs, data.action]), where)
    np.testing.assert_allclose(actual.input_mean, mean, atol=FLOAT32)
    np.testing.assert_allclose(actual.input_std, std, rtol=FLOAT32)


def test_fit_normalizer_takes_the_range_of_the_rows_that_count():
    data, where = make_data(), np.arange(200) % 3 > 0
    actual = fit(make_params(), data, where).normalizer
    rows = np.float32([data.obs[where], data.next_obs[where]])
    np.testing.assert_array_equal(actual.obs_low, rows.min(axis=(0, 1)))
    np.testing.assert_array_equal(actual.obs_high, rows.max(axis=(0, 1)))


def test_fit_normalizer_leaves_targets_alone_by_default():
    actual = fit(make_params(), make_data()).normalizer
    np.testing.assert_array_equal(actual.target_mean, np.zeros(4))
    np.testing.assert_array_equal(actual.target_std, np.ones(4))


def test_normalized_targets_takes_the_moments_of_targets_that_count():
    data, where = make_data(), np.arange(200) % 3 > 0
    actual = fit(make_params(**BOTH), data, where).normalizer
    mean, std = oracles.moments(targets_of(data), where)
    std[2] = 1.0  # this dimension never changes
    # The differences are of float32 numbers, each near one.
    np.testing.assert_allclose(actual.target_mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual.target_std, std, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaled", "options"),
    [
        (slice(0, 3), {"normalize_state": True}),
        (slice(3, 4), {"normalize_reward": True}),
    ],
)
def test_targets_of_state_and_reward_are_normalized_apart(scaled, options):
    actual = fit(make_params(**options), make_data()).normalizer
    expected = fit(make_params(**BOTH), make_data()).normalizer
    for name, without in (("target_mean", 0.0), ("target_std", 1.0)):
        values = np.full(4, without, np.float32)
        values[scaled] = getattr(expected, name)[scaled]
        np.testing.assert_allclose(getattr(actual, name), values, rtol=FLOAT32)


def test_direct_prediction_returns_the_mean_successor_from_a_zero_network():
    data, params = make_data(), make_params(target="next_obs", **BOTH)
    still = params.replace(network=jax.tree.map(jnp.zeros_like, params.network))
    actual = jax.jit(dynamics.predict)(fit(still, data), data.obs[:5], data.action[:5])
    expected = np.broadcast_to(data.next_obs.mean(axis=0), (2, 5, 3))
    np.testing.assert_allclose(actual.next_obs, expected, rtol=1e-5)


def test_normalized_targets_leaves_predictions_in_the_units_of_the_data():
    data, params = make_data(), make_params(**BOTH)
    still = params.replace(network=jax.tree.map(jnp.zeros_like, params.network))
    fitted = fit(still, data)
    actual = jax.jit(dynamics.predict)(fitted, data.obs[:5], data.action[:5])
    mean = targets_of(data).mean(axis=0)
    expected = data.obs[:5] + mean[:3]
    np.testing.assert_allclose(actual.next_obs[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual.reward, np.full((2, 5), mean[3]), rtol=1e-5)


def test_normalized_targets_shifts_log_var_by_that_of_the_scale():
    data, params = make_data(), make_params(**BOTH)
    fitted, predict = fit(params, data), jax.jit(dynamics.predict)
    # The same network with no scale on its targets.
    unit = fitted.normalizer.replace(target_mean=jnp.zeros(4), target_std=jnp.ones(4))
    inputs = data.obs[:5], data.action[:5]
    plain = predict(fitted.replace(normalizer=unit), *inputs).log_var
    shift = 2.0 * np.log(fitted.normalizer.target_std)
    actual = predict(fitted, *inputs).log_var - plain
    # float32 log-variances near ten keep six digits behind the point.
    np.testing.assert_allclose(actual, np.broadcast_to(shift, (2, 5, 4)), atol=1e-5)


def test_a_constant_input_dimension_is_not_inflated_by_its_first_change():
    data = make_data()
    data = data.replace(obs=np.full_like(data.obs, 0.25))
    actual = fit(make_params(), data).normalizer
    changed = (0.26 - actual.input_mean[0]) / actual.input_std[0]
    assert abs(changed) <= 1.0
