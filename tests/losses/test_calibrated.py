"""The calibrated loss of a model that samples: its expectation over the noise.

The tests compare means over many keys with closed forms, in standard errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import loss_of, make_case, make_value, moved, table

from vagram_jax import losses
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# Standard errors that a correct mean exceeds in one of 15,000 seeds; keys are fixed.
ERRORS = 4.0
DRAWS = 4000
# Two equally likely outcomes, without a reward to learn.
OUTCOMES = {
    "obs": np.zeros((2, 1)),
    "action": np.zeros((2, 1)),
    "reward": np.zeros(2),
    "next_obs": np.array([[-1.0], [1.0]]),
    "terminated": np.zeros(2, bool),
    "truncated": np.zeros(2, bool),
}


def means_over_keys(fn):
    """The means of `fn` over many keys, and their standard errors."""
    drawn = jax.jit(jax.vmap(fn))(jax.random.split(jax.random.key(0), DRAWS))
    drawn = np.asarray(drawn)
    return drawn.mean(axis=0), drawn.std(axis=0) / np.sqrt(DRAWS)


def sampled(prediction, batch, value_fn, key, num_samples):
    return losses.calibrated_vaml_loss(
        prediction,
        Transition(**batch),
        value_fn,
        predict=table,
        key=key,
        num_samples=num_samples,
    )


def expected_loss(prediction, batch, value_fn, num_samples):
    return means_over_keys(
        lambda key: sampled(prediction, batch, value_fn, key, num_samples)
    )


def nll_of_rewards(prediction, batch):
    log_var = prediction["log_var"][..., -1]
    square = (prediction["reward"] - batch["reward"]) ** 2
    return np.mean(0.5 * (square * np.exp(-log_var) + log_var + np.log(2.0 * np.pi)))


@pytest.mark.parametrize("num_samples", [2, 5])
def test_calibrated_vaml_is_the_error_of_the_mean_for_linear_values(num_samples):
    batch, prediction = make_case(1)
    slope = np.array([0.5, -2.0, 1.0])
    actual, error = expected_loss(prediction, batch, lambda s: slope @ s, num_samples)
    value_error = (prediction["next_obs"] - batch["next_obs"]) @ slope
    expected = np.mean(value_error**2) + nll_of_rewards(prediction, batch)
    assert abs(actual - expected) < ERRORS * error
    # The correction is far larger than the noise of this test.
    spread = np.mean(np.exp(prediction["log_var"][..., :-1]) @ slope**2) / num_samples
    assert spread > 10 * ERRORS * error


def test_calibrated_vaml_includes_the_curvature_of_quadratic_values():
    batch, prediction = make_case(2)
    curvature = np.array([[1.0, -2.0, 0.5], [0.3, 1.0, 2.0]])

    def value(state):
        return 0.5 * curvature @ state**2

    actual, error = expected_loss(prediction, batch, value, 2)
    # E V is V at the mean plus half of the trace of Hessian times variance.
    variance = np.exp(prediction["log_var"][..., :-1])
    mean = 0.5 * (prediction["next_obs"] ** 2 + variance) @ curvature.T
    real = 0.5 * batch["next_obs"] ** 2 @ curvature.T
    rewards = nll_of_rewards(prediction, batch)
    expected = np.mean((mean - real) ** 2) + rewards
    assert abs(actual - expected) < ERRORS * error
    without = np.mean((0.5 * prediction["next_obs"] ** 2 @ curvature.T - real) ** 2)
    assert abs(without + rewards - expected) > 10 * ERRORS * error


def test_calibrated_vaml_without_spread_is_vaml_and_the_likelihood_of_the_reward():
    batch, prediction = make_case(3)
    value, _ = make_value(4)
    log_var = prediction["log_var"].copy()
    log_var[..., :-1] = -200.0
    certain = moved(prediction, log_var=log_var)
    actual = loss_of("calibrated_vaml", certain, batch, value)
    right = moved(prediction, reward=np.broadcast_to(batch["reward"], (2, 6)))
    expected = loss_of("vaml", right, batch, value) + nll_of_rewards(certain, batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@functools.cache
def first_dimension_alone():
    """The loss of a value that ignores the second dimension, compiled."""
    return jax.jit(
        lambda prediction, batch, **options: losses.calibrated_vaml_loss(
            prediction, Transition(**batch), lambda s: s[0], predict=table, **options
        )
    )


def test_calibrated_vaml_draws_other_samples_for_another_batch():
    batch, prediction = make_case(5, obs_dim=2)
    changed = batch | {"next_obs": batch["next_obs"] + np.array([0.0, 1e-3])}
    run = first_dimension_alone()
    assert run(prediction, batch) == run(prediction, batch)
    # Only the samples differ: the value ignores the changed dimension.
    assert abs(run(prediction, changed) - run(prediction, batch)) > 1e-3
    key = jax.random.key(1)
    actual = run(prediction, changed, key=key)
    np.testing.assert_array_equal(actual, run(prediction, batch, key=key))


def test_calibrated_vaml_draws_other_samples_with_another_key():
    batch, prediction = make_case(6, obs_dim=2)
    run = first_dimension_alone()
    first, second = (run(prediction, batch, key=jax.random.key(i)) for i in (0, 1))
    assert abs(first - second) > 1e-3


def test_calibrated_vaml_uses_a_key_once(key_reuse):
    batch, prediction = make_case(7)
    key = jax.random.key(2)
    actual = losses.calibrated_vaml_loss(
        prediction, Transition(**batch), jnp.sum, predict=table, key=key
    )
    assert np.isfinite(actual)


def expected_slope(value_fn, log_var=0.0):
    """The loss's slope in a Gaussian's mean, zero, and in its log-variance."""

    def gaussian(mean, log_var):
        return {
            "next_obs": jnp.broadcast_to(mean, (2, 1)),
            "reward": jnp.zeros(2),
            "log_var": jnp.stack([jnp.full(2, log_var), jnp.zeros(2)], axis=-1),
        }

    def loss(params, key):
        return sampled(gaussian(*params), OUTCOMES, value_fn, key, 4)

    start = jnp.array([0.0, log_var])
    return means_over_keys(lambda key: jax.grad(loss)(start, key))


def test_calibrated_vaml_is_stationary_at_the_true_mean_and_variance():
    # The outcomes have a mean of zero and a variance of one; the mean of a quadratic
    # value depends only on these two.
    actual, error = expected_slope(lambda s: s[0] + 0.5 * s[0] ** 2)
    assert np.all(np.abs(actual) < ERRORS * error)
    # The variance of V is 3/2. Without the correction its slope in log var would be 1/2
    # for four samples, and would lower the variance.
    assert 4 * ERRORS * error[1] < 0.5


@pytest.mark.parametrize(("log_var", "sign"), [(-1.5, -1), (1.0, 1)])
def test_calibrated_vaml_moves_a_wrong_variance_towards_the_true_one(log_var, sign):
    actual, error = expected_slope(lambda s: s[0] + 0.5 * s[0] ** 2, log_var)
    assert sign * actual[1] > ERRORS * error[1]
    # E V is var / 2 at a mean of zero, where it should be 1/2.
    variance = np.exp(log_var)
    expected = 2.0 * (0.5 * variance - 0.5) * 0.5 * variance
    assert abs(actual[1] - expected) < ERRORS * error[1]


def test_calibrated_vaml_ignores_the_variance_for_linear_values():
    actual, error = expected_slope(lambda s: s[0])
    assert np.all(np.abs(actual) < ERRORS * error)
    # Without the correction the slope in log var would be a quarter.
    assert 4 * ERRORS * error[1] < 0.25
