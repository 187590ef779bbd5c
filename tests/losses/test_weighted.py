"""The weights of the weighted losses, and the losses in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import EXACT, loss_of, make_batch, make_case, without_reward

from vagram_jax.config import ConfigError
from vagram_jax.losses import value_gradients, weighted
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig

pytestmark = pytest.mark.usefixtures("x64")

# Four linear value functions.
ROWS = np.random.default_rng(0).normal(size=(4, 3))


def linear(state):
    return ROWS @ state


def test_constant_weights_equal_vagram_for_linear_values():
    batch, prediction = make_case(10)
    np.testing.assert_allclose(
        loss_of("constant_weights", prediction, batch, linear),
        loss_of("vagram", prediction, batch, linear),
        rtol=EXACT,
    )


def test_constant_weights_of_a_quadratic_value_are_squared_curvature_times_spread():
    batch, prediction = make_case(11)
    states, curvature = without_reward(prediction, batch), np.array([3.0, -1.0, 0.25])
    error = states["next_obs"] - batch["next_obs"]
    weights = curvature**2 * np.mean(batch["next_obs"] ** 2, axis=0)
    actual = loss_of(
        "constant_weights", states, batch, lambda s: 0.5 * jnp.sum(curvature * s**2)
    )
    np.testing.assert_allclose(actual, np.mean(error**2 @ weights), rtol=EXACT)


def test_sample_weighted_with_weights_of_one_is_mse():
    batch, prediction = make_case(12)
    batch["weight"] = np.ones(6)
    actual = loss_of("sample_weighted", prediction, batch)
    expected = loss_of("mse", prediction, batch)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_sample_weighted_with_one_weight_is_the_share_of_that_row():
    batch, prediction = make_case(13)
    batch["weight"] = np.eye(6)[4]
    row = {name: x[4:5] for name, x in batch.items()}
    predicted = {name: x[:, 4:5] for name, x in prediction.items()}
    actual = loss_of("sample_weighted", prediction, batch)
    expected = loss_of("mse", predicted, row) / 6
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_sample_weighted_is_linear_in_the_weights():
    batch, prediction = make_case(14)
    first, second = np.random.default_rng(14).uniform(size=(2, 6))
    actual, *parts = [
        loss_of("sample_weighted", prediction, batch, prepared=weights)
        for weights in (first + 3.0 * second, first, second)
    ]
    np.testing.assert_allclose(actual, parts[0] + 3.0 * parts[1], rtol=EXACT)


def test_sample_weighted_takes_weights_in_place_of_those_of_the_batch():
    batch, prediction = make_case(15)
    given = batch["weight"][::-1].copy()
    actual = loss_of("sample_weighted", prediction, batch, prepared=given)
    expected = loss_of("sample_weighted", prediction, batch | {"weight": given})
    np.testing.assert_array_equal(actual, expected)


def half_square(state):
    """A value whose gradient at a state is that state."""
    return 0.5 * jnp.sum(state**2)


def weights_by(prepare, batch, value_fn=half_square, where=None, **configs):
    run = functools.partial(prepare, value_fn=value_fn, **configs)
    return np.asarray(jax.jit(run)(batch, where=where))


def vagram_weights(batch, where=None, prepare=weighted.vagram_weights, **weights):
    return weights_by(prepare, batch, where=where, weights=WeightConfig(**weights))


@pytest.mark.parametrize(
    ("gradients", "weights"),
    [
        ({}, {}),
        ({"mask_terminated": True}, {"normalize": True}),
        ({"clip_quantile": 0.5}, {"scale_by_dim": True}),
        ({"at": "delta", "clip_quantile": 0.7, "mask_terminated": True}, {}),
    ],
)
def test_vagram_weights_follow_every_option(gradients, weights):
    batch, where = make_batch(28), np.arange(6) < 5
    config = GradientConfig(**gradients)
    actual = weights_by(
        weighted.vagram_weights,
        batch,
        where=where,
        gradients=config,
        weights=WeightConfig(**weights),
    )
    counted = where & ~batch.terminated if config.mask_terminated else where
    expected = value_gradients.value_gradient_weights(
        half_square,
        batch.next_obs - batch.obs if config.at == "delta" else batch.next_obs,
        where=counted,
        clip_quantile=config.clip_quantile,
        **weights,
    )
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_default_coefficients_leave_every_bit():
    batch, where = make_batch(36), np.arange(6) < 5
    squares = np.where(where[:, None], batch.next_obs**2, 0.0)
    np.testing.assert_array_equal(vagram_weights(batch, where), squares)
    resolved = value_gradients.resolve(WeightConfig(), 7)
    np.testing.assert_array_equal(
        weights_by(weighted.vagram_weights, batch, where=where, weights=resolved),
        squares,
    )


@pytest.mark.parametrize("mse_normalized", [False, True])
def test_coefficients_add_the_weights_of_a_squared_error(mse_normalized):
    batch, where = make_batch(39), np.arange(6) < 5
    plain = vagram_weights(batch, where, normalize=True)
    mixed = vagram_weights(
        batch,
        where,
        normalize=True,
        gradient_coef=0.25,
        mse_coef=0.5,
        mse_normalized=mse_normalized,
    )
    other = np.ones(3)
    if mse_normalized:
        _, std = oracles.moments(batch.next_obs - batch.obs, where)
        other = std**-2 / np.mean(std**-2)
    other = np.where(where[:, None], other, 0.0)
    np.testing.assert_allclose(mixed, 0.25 * plain + 0.5 * other, rtol=EXACT)


def test_masked_rows_keep_the_weights_of_the_squared_error():
    batch = make_batch(39)
    weights = weights_by(
        weighted.vagram_weights,
        batch,
        gradients=GradientConfig(mask_terminated=True),
        weights=WeightConfig(mse_coef=0.5),
    )
    squares = np.where(batch.terminated[:, None], 0.0, batch.next_obs**2)
    np.testing.assert_allclose(weights, squares + 0.5, rtol=EXACT)


def test_vagram_weights_pass_no_gradient_to_the_coefficients():
    def total(coef):
        config = WeightConfig(gradient_coef=coef, mse_coef=coef)
        return jnp.sum(
            weighted.vagram_weights(make_batch(), half_square, weights=config)
        )

    assert float(jax.grad(total)(0.5)) == 0.0


def test_mse_normalized_without_mse_coef_is_refused():
    with pytest.raises(ConfigError, match="mse_normalized=True has no effect with mse"):
        vagram_weights(make_batch(), mse_normalized=True)


@pytest.mark.parametrize("leading", [(6,), (2, 6)])
def test_mean_vagram_weights_are_means_over_the_rows_that_count(leading):
    where = np.broadcast_to(np.arange(6) < 4, leading)
    batch = make_batch(40, leading=leading)
    squares = batch.next_obs[where] ** 2
    garbage = np.where(where[..., None], batch.next_obs, [np.nan, np.inf, 1e30])
    batch = batch.replace(next_obs=garbage)
    weights = vagram_weights(batch, where, prepare=weighted.mean_vagram_weights)
    expected = np.broadcast_to(squares.mean(axis=0), (*leading, 3))
    np.testing.assert_allclose(weights, expected, rtol=EXACT)


def test_magnitude_weights_are_mean_magnitudes_over_their_mean():
    batch, where = make_batch(30), np.arange(6) < 4
    weights = weights_by(
        weighted.magnitude_weights,
        batch,
        lambda s: jnp.array([1.0, -3.0]) * s[0],
        where,
    )
    magnitude = 2.0 * np.abs(batch.next_obs[:, 0])
    expected = np.broadcast_to((magnitude / magnitude[:4].mean())[:, None], (6, 3))
    np.testing.assert_allclose(weights, expected, rtol=EXACT)
    zero = weights_by(weighted.magnitude_weights, batch, lambda s: 0.0 * s[0])
    np.testing.assert_array_equal(zero, np.zeros((6, 3)))


@pytest.mark.parametrize("leading", [(8,), (2, 8)])
def test_variance_weights_are_one_over_the_variance_of_each_target(leading):
    batch = make_batch(33, leading=leading)
    where = np.broadcast_to(np.arange(8) < 6, leading)
    weights = weights_by(weighted.variance_weights, batch, None, where)
    targets = np.concatenate([batch.next_obs - batch.obs, batch.reward[..., None]], -1)
    _, std = oracles.moments(targets[where], np.ones(where.sum(), bool))
    expected = np.broadcast_to(1.0 / std**2, (*leading, 4))
    np.testing.assert_allclose(weights, expected, rtol=EXACT)
