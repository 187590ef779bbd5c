"""The formulas of the losses: against the oracles, and the identities they obey."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import (
    DIFFERENCES,
    EXACT,
    SECOND_DIFFERENCES,
    assert_identical,
    grad_of,
    loss_and_grad,
    loss_of,
    make_case,
    make_value,
    moved,
    without_reward,
)

from vagram_jax import losses

pytestmark = pytest.mark.usefixtures("x64")

ALL = sorted(losses.LOSSES)


def calibrated_vaml(prediction, batch, value_fn):
    """The oracle with the noise that the loss draws with the key of `options_of`."""
    shape = (4, *prediction["next_obs"].shape)
    noise = jax.random.normal(options_of("calibrated_vaml")["key"], shape, "float64")
    return oracles.calibrated_vaml(prediction, batch, value_fn, np.asarray(noise))


def options_of(name):
    return {"key": jax.random.key(3)} if name == "calibrated_vaml" else {}


def without_spread(name, prediction):
    """For a loss that samples: noise is drawn for a place in the batch.

    Rows in other places have other samples, so that only without spread is a loss of
    the rows the same wherever they stand.
    """
    if name != "calibrated_vaml":
        return prediction
    log_var = np.array(prediction["log_var"])
    log_var[..., :-1] = -200.0
    return moved(prediction, log_var=log_var)


ORACLES = {
    "calibrated_vaml": calibrated_vaml,
    "constant_weights": oracles.constant_weights,
    "mle": oracles.gaussian_nll,
    "mse": oracles.mse,
    "mse_normalized": oracles.mse_normalized,
    "muzero": oracles.muzero,
    "quadratic": oracles.quadratic,
    "quadratic_eigen": oracles.quadratic_eigen,
    "sample_weighted": oracles.sample_weighted,
    "vagram": oracles.vagram,
    "vagram_nll": oracles.vagram_nll,
    "vagram_unbounded": oracles.vagram_unbounded,
    "value_equivalence": oracles.value_equivalence,
    "value_l1": oracles.value_l1,
    "value_weighted": oracles.value_weighted,
    "vaml": oracles.vaml,
}


def test_every_registered_loss_has_an_oracle():
    assert set(ORACLES) == set(ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("leading", [(6,), (2, 6)], ids=["shared", "per_member"])
def test_each_loss_equals_its_oracle(name, leading):
    batch, prediction = make_case(1, leading=leading)
    value, plain = make_value(2, num_values=4)
    actual = loss_of(name, prediction, batch, value, **options_of(name))
    expected = ORACLES[name](prediction, batch, plain)
    is_second_order = name.startswith("quadratic")
    tolerance = SECOND_DIFFERENCES if is_second_order else DIFFERENCES
    np.testing.assert_allclose(actual, expected, rtol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_each_loss_of_rows_given_twice_is_that_of_the_rows(name):
    batch, prediction = make_case(3)
    prediction = without_spread(name, prediction)
    value, _ = make_value(4)
    twice = {key: np.concatenate([x, x]) for key, x in batch.items()}
    actual = {key: np.concatenate([x, x], axis=1) for key, x in prediction.items()}
    np.testing.assert_allclose(
        loss_of(name, actual, twice, value),
        loss_of(name, prediction, batch, value),
        rtol=EXACT,
    )


@pytest.mark.parametrize("name", ALL)
def test_each_loss_of_a_single_row_is_finite(name):
    batch, prediction = make_case(3, leading=(1,))
    actual = loss_and_grad(name, prediction, batch, lambda s: 0.0 * s[0])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(actual))


@pytest.mark.parametrize("seed", range(3))
def test_vagram_times_the_dimension_bounds_the_unbounded_form(seed):
    batch, prediction = make_case(seed)
    value, _ = make_value(seed)
    states = without_reward(prediction, batch)
    bound = 3 * loss_of("vagram", states, batch, value)
    assert bound >= loss_of("vagram_unbounded", states, batch, value)


def test_vagram_times_the_dimension_meets_the_bound_for_equal_products():
    batch, prediction = make_case(5)
    slope = np.array([0.5, -2.0, 4.0])
    # Errors inversely proportional to the slopes: all products are 0.25.
    states = moved(
        without_reward(prediction, batch),
        next_obs=np.broadcast_to(batch["next_obs"] + 0.25 / slope, (2, 6, 3)),
    )
    np.testing.assert_allclose(
        3 * loss_of("vagram", states, batch, lambda s: s @ slope),
        loss_of("vagram_unbounded", states, batch, lambda s: s @ slope),
        rtol=EXACT,
    )


def test_vagram_unbounded_equals_vaml_for_linear_values():
    batch, prediction = make_case(6)
    rows = np.random.default_rng(6).normal(size=(4, 3))
    np.testing.assert_allclose(
        loss_of("vagram_unbounded", prediction, batch, lambda s: rows @ s),
        loss_of("vaml", prediction, batch, lambda s: rows @ s),
        rtol=EXACT,
    )


def test_vagram_is_a_weighted_squared_error_for_linear_values():
    batch, prediction = make_case(7)
    states, slope = without_reward(prediction, batch), np.array([0.5, -2.0, 4.0])
    error = states["next_obs"] - batch["next_obs"]
    np.testing.assert_allclose(
        loss_of("vagram", states, batch, lambda s: s @ slope),
        np.mean(np.sum(slope**2 * error**2, axis=-1)),
        rtol=EXACT,
    )


def test_vagram_averages_squares_over_value_functions():
    batch, prediction = make_case(8, obs_dim=2)
    states = without_reward(prediction, batch)
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])
    error = states["next_obs"] - batch["next_obs"]
    # Neither the square of the mean, (9/16, 1), nor squares of running sums.
    np.testing.assert_allclose(
        loss_of("vagram", states, batch, lambda s: rows @ s),
        np.mean(error**2 @ np.array([1.25, 2.5])),
        rtol=EXACT,
    )


def test_vagram_equals_mse_for_unit_gradients():
    batch, prediction = make_case(9)
    actual = loss_of("vagram", prediction, batch, lambda s: s[0] - s[1] + s[2])
    np.testing.assert_array_equal(actual, loss_of("mse", prediction, batch))


def test_vagram_is_mse_scaled_for_gradients_of_equal_size():
    batch, prediction = make_case(10)
    states = without_reward(prediction, batch)
    # A power of two, so that the equality is exact.
    actual = grad_of("vagram", states, batch, lambda s: -4.0 * jnp.sum(s))
    expected = grad_of("mse", states, batch)
    np.testing.assert_array_equal(actual["next_obs"], 16.0 * expected["next_obs"])


def test_vagram_equals_the_unbounded_form_in_one_dimension():
    batch, prediction = make_case(11, obs_dim=1)
    value, _ = make_value(12, obs_dim=1)
    np.testing.assert_allclose(
        loss_of("vagram", prediction, batch, value),
        loss_of("vagram_unbounded", prediction, batch, value),
        rtol=EXACT,
    )


def rescaled(prediction, batch, scale):
    """The same states and predictions in other units."""
    new = {name: batch[name] * scale for name in ("obs", "next_obs")}
    return moved(prediction, next_obs=prediction["next_obs"] * scale), batch | new


def test_vagram_is_invariant_to_the_units_of_each_dimension():
    batch, prediction = make_case(13)
    value, _ = make_value(14)
    scale = np.array([0.01, 1.0, 30.0])
    actual = loss_of(
        "vagram", *rescaled(prediction, batch, scale), lambda s: value(s / scale)
    )
    expected = loss_of("vagram", prediction, batch, value)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_mse_depends_on_the_units_of_each_dimension():
    batch, prediction = make_case(13)
    scaled = loss_of("mse", *rescaled(prediction, batch, np.array([0.01, 1.0, 30.0])))
    assert scaled > 100.0 * loss_of("mse", prediction, batch)  # a third, times 900


def rotated_ratio(name):
    """The loss in rotated coordinates over the loss, for a slope along one axis."""
    batch, prediction = make_case(15, obs_dim=2)
    states = without_reward(prediction, batch)
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
    new = batch | {"obs": batch["obs"] @ turn, "next_obs": batch["next_obs"] @ turn}
    turned = moved(states, next_obs=states["next_obs"] @ turn)
    actual = loss_of(name, turned, new, lambda s: (turn @ s)[0])
    return actual / loss_of(name, states, batch, lambda s: s[0])


def test_vagram_unbounded_is_invariant_to_rotations():
    np.testing.assert_allclose(rotated_ratio("vagram_unbounded"), 1.0, rtol=EXACT)


def test_vagram_depends_on_the_axes():
    # The weights (1, 0) become (1/2, 1/2): half of the whole squared error.
    batch, prediction = make_case(15, obs_dim=2)
    error = np.mean((prediction["next_obs"] - batch["next_obs"]) ** 2, axis=(0, 1))
    expected = 0.5 * np.sum(error) / error[0]
    assert abs(expected - 1.0) > 0.01
    np.testing.assert_allclose(rotated_ratio("vagram"), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        *("vagram", "vagram_unbounded", "vaml", "constant_weights", "quadratic"),
        *("quadratic_eigen", "value_equivalence"),
    ],
)
def test_value_losses_scale_the_state_term_with_the_square_of_the_value(name):
    batch, prediction = make_case(16)
    value, _ = make_value(17)
    states = without_reward(prediction, batch)
    actual = loss_of(name, states, batch, lambda s: -3.0 * value(s) + 5.0)
    expected = 9.0 * loss_of(name, states, batch, value)
    np.testing.assert_allclose(actual, expected, rtol=1e-11)  # 5.0 costs a digit


@pytest.mark.parametrize("name", ["vagram", "vagram_unbounded", "vaml"])
def test_value_losses_leave_the_reward_term_as_the_value_scales(name):
    batch, prediction = make_case(18)
    value, _ = make_value(19)
    actual = grad_of(name, prediction, batch, lambda s: -3.0 * value(s))["reward"]
    expected = 2.0 * (prediction["reward"] - batch["reward"]) / actual.size
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_vaml_differs_from_the_unbounded_form_by_the_cube_of_the_error():
    batch, prediction = make_case(20)
    value, _ = make_value(21)
    ratios = []
    for size in (1e-1, 1e-2, 1e-3):
        error = size * (prediction["next_obs"] - batch["next_obs"])
        states = without_reward(prediction, batch)
        states = moved(states, next_obs=batch["next_obs"] + error)
        vaml = loss_of("vaml", states, batch, value)
        unbounded = loss_of("vagram_unbounded", states, batch, value)
        ratios.append((vaml - unbounded) / size**3)
    # Were it any lower power, the ratio would grow tenfold with each step.
    np.testing.assert_allclose(ratios[1:], ratios[2], rtol=0.1)
    assert abs(ratios[2]) > 1e-3


def test_vagram_has_the_gradient_of_a_weighted_square():
    batch, prediction = make_case(22)
    value, plain = make_value(23)
    actual = grad_of("vagram", prediction, batch, value)["next_obs"]
    weight = oracles.value_gradient_weights(plain, batch["next_obs"])
    error = prediction["next_obs"] - batch["next_obs"]
    np.testing.assert_allclose(actual, 2.0 * weight * error / 12, rtol=DIFFERENCES)


@pytest.mark.parametrize(
    "name",
    [
        *("vagram", "vagram_unbounded", "vagram_nll", "constant_weights", "quadratic"),
        *("quadratic_eigen", "value_equivalence", "value_l1", "muzero"),
        "calibrated_vaml",
    ],
)
def test_vagram_is_blind_to_dimensions_without_influence(name):
    batch, prediction = make_case(24)
    far = prediction["next_obs"].copy()
    far[..., 2] = 1e6
    assert_identical(
        loss_and_grad(
            name, moved(prediction, next_obs=far), batch, lambda s: s[0] ** 3
        ),
        loss_and_grad(name, prediction, batch, lambda s: s[0] ** 3),
    )


@pytest.mark.parametrize(
    "name",
    [
        *("vagram", "vagram_unbounded", "vaml", "mle", "constant_weights", "quadratic"),
        *("quadratic_eigen", "value_equivalence", "value_l1", "muzero"),
        "sample_weighted",
    ],
)
def test_added_dimensions_without_influence_or_error_leave_squared_losses(name):
    batch, prediction = make_case(25)
    value, _ = make_value(26)
    wide = {
        key: np.concatenate([batch[key], np.ones((6, 4))], axis=-1)
        for key in ("obs", "next_obs")
    }
    states = np.concatenate([prediction["next_obs"], np.ones((2, 6, 4))], axis=-1)
    if name == "mle":  # four certain unit Gaussians add half of log 2 pi each
        log_var = np.insert(prediction["log_var"], [3] * 4, 0.0, axis=-1)
        actual = loss_of(
            name, moved(prediction, next_obs=states, log_var=log_var), batch | wide
        )
        expected = loss_of(name, prediction, batch) + 2.0 * np.log(2.0 * np.pi)
    else:
        actual = loss_of(
            name,
            moved(prediction, next_obs=states),
            batch | wide,
            lambda s: value(s[:3]),
        )
        expected = loss_of(name, prediction, batch, value)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def isoline_case():
    """Predictions that are the real successors, rotated: of the same length."""
    batch, prediction = make_case(27, obs_dim=2)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    turned = np.broadcast_to(batch["next_obs"] @ turn, (2, 6, 2))
    return batch, moved(without_reward(prediction, batch), next_obs=turned)


@pytest.mark.parametrize(("name", "zero"), [("vaml", 1), ("mse", 0), ("vagram", 0)])
def test_vaml_alone_is_zero_along_an_isoline_of_the_value(name, zero):
    batch, prediction = isoline_case()
    actual = loss_of(name, prediction, batch, lambda s: jnp.sum(s**2))
    if zero:
        np.testing.assert_allclose(actual, 0.0, atol=1e-28)  # squares of rounding
    else:
        assert actual > 0.1


def test_vagram_nll_with_weights_of_one_equals_mle():
    batch, prediction = make_case(28)
    actual = loss_of("vagram_nll", prediction, batch, prepared=np.ones((6, 3)))
    np.testing.assert_array_equal(actual, loss_of("mle", prediction, batch))


def test_mle_of_unit_variance_is_half_of_mse_and_a_constant():
    batch, prediction = make_case(29)
    certain = moved(prediction, log_var=np.zeros((2, 6, 4)))
    expected = 0.5 * loss_of("mse", prediction, batch) + 2.0 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(loss_of("mle", certain, batch), expected, rtol=EXACT)


@pytest.mark.parametrize("name", ["mle", "mse", "mse_normalized", "sample_weighted"])
def test_losses_without_a_value_ignore_it(name):
    batch, prediction = make_case(30)
    assert_identical(
        loss_and_grad(name, prediction, batch, lambda s: jnp.full(7, jnp.nan) * s[0]),
        loss_and_grad(name, prediction, batch, None),
    )


# Likelihoods are no errors, and the target of `muzero` is no successor's value. What is
# left of an absolute error after rounding has a sign, and so a gradient.
NEVER_ZERO = {"mle", "vagram_nll", "calibrated_vaml", "muzero", "value_l1"}


@pytest.mark.parametrize("name", sorted({*ALL} - NEVER_ZERO))
def test_squared_losses_and_their_gradients_are_zero_for_a_perfect_model(name):
    batch, prediction = make_case(31)
    value, _ = make_value(32)
    perfect = moved(
        without_reward(prediction, batch),
        next_obs=np.broadcast_to(batch["next_obs"], (2, 6, 3)),
    )
    actual = loss_and_grad(name, perfect, batch, value)
    assert_identical(actual, jax.tree.map(np.zeros_like, actual))
