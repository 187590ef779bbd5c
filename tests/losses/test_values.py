"""Losses of values, and weights that are not the sample's gradient: closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import EXACT, grad_of, loss_of, make_case, make_value, without_reward

pytestmark = pytest.mark.usefixtures("x64")

# Four linear value functions.
ROWS = np.random.default_rng(0).normal(size=(4, 3))


def linear(state):
    return ROWS @ state


def linear_errors(prediction, batch):
    """By how much the linear values err, `[E, B, K]`."""
    return (prediction["next_obs"] - batch["next_obs"]) @ ROWS.T


def test_value_equivalence_is_vaml_times_the_number_of_values():
    batch, prediction = make_case(1)
    value, _ = make_value(2, num_values=4)
    states = without_reward(prediction, batch)
    found = loss_of("value_equivalence", states, batch, value)
    wanted = 4 * loss_of("vaml", states, batch, value)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_value_equivalence_leaves_the_reward_term_as_it_is():
    batch, prediction = make_case(1)
    states = without_reward(prediction, batch)
    found = loss_of("value_equivalence", prediction, batch, linear)
    found -= loss_of("value_equivalence", states, batch, linear)
    wanted = np.mean((prediction["reward"] - batch["reward"]) ** 2)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_value_equivalence_is_a_sum_of_squares_for_linear_values():
    batch, prediction = make_case(3)
    states = without_reward(prediction, batch)
    wanted = np.mean(np.sum(linear_errors(states, batch) ** 2, axis=-1))
    found = loss_of("value_equivalence", states, batch, linear)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_value_l1_is_the_mean_absolute_error_for_linear_values():
    batch, prediction = make_case(4)
    states = without_reward(prediction, batch)
    found = loss_of("value_l1", states, batch, linear)
    wanted = np.mean(np.abs(linear_errors(states, batch)))
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_value_l1_has_the_sign_of_the_error_as_its_slope():
    batch, prediction = make_case(5)
    found = grad_of("value_l1", prediction, batch, linear)["next_obs"]
    signs = np.sign(linear_errors(prediction, batch))
    # A mean over two members, six rows and four values.
    np.testing.assert_allclose(found, signs @ ROWS / 48, rtol=EXACT, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_value_l1_is_bounded_by_the_root_of_vaml(seed):
    batch, prediction = make_case(seed)
    value, _ = make_value(seed)
    states = without_reward(prediction, batch)
    bound = np.sqrt(loss_of("vaml", states, batch, value))
    found = loss_of("value_l1", states, batch, value)
    assert 0.5 * bound < found <= bound


def test_muzero_with_the_value_of_the_successor_as_target_is_vaml():
    batch, prediction = make_case(6)
    value, plain = make_value(7, num_values=1)
    batch["next_value"] = np.array([plain(state)[0] for state in batch["next_obs"]])
    np.testing.assert_allclose(
        loss_of("muzero", prediction, batch, value),
        loss_of("vaml", prediction, batch, value),
        rtol=EXACT,
    )


def test_muzero_takes_a_target_for_each_value_function():
    batch, prediction = make_case(8)
    # Not those of the batch, which are the same for all value functions.
    found = loss_of(
        "muzero", prediction, batch, linear, targets=batch["next_obs"] @ ROWS.T
    )
    wanted = loss_of("vaml", prediction, batch, linear)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_muzero_is_a_squared_difference_to_the_target_for_linear_values():
    batch, prediction = make_case(9)
    values = prediction["next_obs"] @ ROWS.T
    square = (values - batch["next_value"][:, None]) ** 2
    wanted = np.mean(square) + np.mean((prediction["reward"] - batch["reward"]) ** 2)
    found = loss_of("muzero", prediction, batch, linear)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


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
    found = loss_of(
        "constant_weights", states, batch, lambda s: 0.5 * jnp.sum(curvature * s**2)
    )
    np.testing.assert_allclose(found, np.mean(error**2 @ weights), rtol=EXACT)


def test_sample_weighted_with_weights_of_one_is_mse():
    batch, prediction = make_case(12)
    batch["weight"] = np.ones(6)
    found = loss_of("sample_weighted", prediction, batch)
    wanted = loss_of("mse", prediction, batch)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_sample_weighted_with_one_weight_is_the_share_of_that_row():
    batch, prediction = make_case(13)
    batch["weight"] = np.eye(6)[4]
    row = {name: x[4:5] for name, x in batch.items()}
    predicted = {name: x[:, 4:5] for name, x in prediction.items()}
    found = loss_of("sample_weighted", prediction, batch)
    wanted = loss_of("mse", predicted, row) / 6
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_sample_weighted_is_linear_in_the_weights():
    batch, prediction = make_case(14)
    first, second = np.random.default_rng(14).uniform(size=(2, 6))
    found, *parts = [
        loss_of("sample_weighted", prediction, batch, weights=weights)
        for weights in (first + 3.0 * second, first, second)
    ]
    np.testing.assert_allclose(found, parts[0] + 3.0 * parts[1], rtol=EXACT)


def test_sample_weighted_takes_weights_in_place_of_those_of_the_batch():
    batch, prediction = make_case(15)
    given = batch["weight"][::-1].copy()
    found = loss_of("sample_weighted", prediction, batch, weights=given)
    wanted = loss_of("sample_weighted", prediction, batch | {"weight": given})
    np.testing.assert_array_equal(found, wanted)
