"""The Taylor losses: their derivatives, closed forms, bounds and invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import (
    EXACT,
    loss_of,
    make_batch,
    make_case,
    make_value,
    moved,
    without_reward,
)

from vagram_jax.losses import taylor, value_gradients
from vagram_jax.losses.value_gradients import GradientConfig
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

SECOND_ORDER = ["quadratic", "quadratic_eigen"]
every_form = pytest.mark.parametrize("name", SECOND_ORDER)


def quadratic_values(seed, num_values=2, obs_dim=3):
    """K values with slopes and full Hessians: the functions, slopes and Hessians."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(num_values, obs_dim))
    hessians = rng.normal(size=(num_values, obs_dim, obs_dim))
    hessians = hessians + np.swapaxes(hessians, -1, -2)

    def value(state):
        return slopes @ state + 0.5 * jnp.einsum("kij,i,j->k", hessians, state, state)

    return value, slopes, hessians


def prepared_by(prepare, batch, value_fn, **options):
    run = functools.partial(
        prepare, value_fn=value_fn, gradients=GradientConfig(**options)
    )
    return np.asarray(jax.jit(run)(batch))


@every_form
def test_second_order_equals_vagram_for_linear_values(name):
    # Any basis diagonalizes a Hessian of zero; LAPACK returns the axes, so that the
    # loss along the eigenvectors is VaGraM, too.
    batch, prediction = make_case(1)
    rows = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(
        loss_of(name, prediction, batch, lambda s: rows @ s),
        loss_of("vagram", prediction, batch, lambda s: rows @ s),
        rtol=EXACT,
    )


@every_form
def test_second_order_of_a_diagonal_hessian_is_a_sum_of_squares(name):
    batch, prediction = make_case(2)
    states = without_reward(prediction, batch)
    slope, curvature = np.array([0.5, -2.0, 1.0]), np.array([3.0, -1.0, 0.25])
    error = states["next_obs"] - batch["next_obs"]
    gradient = slope + curvature * batch["next_obs"]
    expected = np.sum((gradient * error + 0.5 * curvature * error**2) ** 2, axis=-1)
    actual = loss_of(
        name, states, batch, lambda s: slope @ s + 0.5 * jnp.sum(curvature * s**2)
    )
    np.testing.assert_allclose(actual, np.mean(expected), rtol=EXACT)


@every_form
def test_second_order_equals_vaml_for_quadratic_values_of_one_dimension(name):
    batch, prediction = make_case(3, obs_dim=1)
    value, _, _ = quadratic_values(3, obs_dim=1)
    np.testing.assert_allclose(
        loss_of(name, prediction, batch, value),
        loss_of("vaml", prediction, batch, value),
        rtol=1e-11,  # a difference of values costs vaml a digit
    )


@every_form
def test_second_order_differs_from_vaml_by_the_fourth_power_in_one_dimension(name):
    batch, prediction = make_case(4, obs_dim=1)
    value, _ = make_value(5, obs_dim=1)
    states, ratios = without_reward(prediction, batch), []
    for size in (3e-2, 1e-2, 3e-3):
        error = size * (prediction["next_obs"] - batch["next_obs"])
        near = moved(states, next_obs=batch["next_obs"] + error)
        difference = loss_of("vaml", near, batch, value)
        difference -= loss_of(name, near, batch, value)
        ratios.append(difference / size**4)
    # Were it the cube, as without the curvature, the ratio would grow threefold.
    np.testing.assert_allclose(ratios[:2], ratios[2], rtol=0.1)
    assert abs(ratios[2]) > 1e-3


def test_the_parts_along_the_eigenvectors_add_up_to_vaml_for_quadratic_values():
    batch, prediction = make_case(6)
    value, _, _ = quadratic_values(6)
    states = without_reward(prediction, batch)
    terms = prepared_by(taylor.eigenvector_terms, Transition(**batch), value)
    slope, curvature, basis = terms[..., 0, :], terms[..., 1, :], terms[..., 2:, :]
    error = states["next_obs"] - batch["next_obs"]
    turned = np.einsum("bkjd,ebd->ebkj", basis, error)
    whole = np.sum(slope * turned + 0.5 * curvature * turned**2, axis=-1)
    expected = loss_of("vaml", states, batch, value)
    np.testing.assert_allclose(np.mean(whole**2), expected, rtol=1e-11)
    # Squared before they are added up they are the loss.
    parts = np.sum((slope * turned + 0.5 * curvature * turned**2) ** 2, axis=-1)
    actual = loss_of("quadratic_eigen", states, batch, value)
    np.testing.assert_allclose(actual, np.mean(parts), rtol=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_quadratic_eigen_times_the_dimension_bounds_vaml_for_quadratic_values(seed):
    batch, prediction = make_case(seed)
    value, _, _ = quadratic_values(seed)
    states = without_reward(prediction, batch)
    bound = 3 * loss_of("quadratic_eigen", states, batch, value)
    assert bound >= loss_of("vaml", states, batch, value)


def test_quadratic_leaves_out_the_mixed_terms_and_quadratic_eigen_does_not():
    batch, prediction = make_case(7, obs_dim=2)
    batch["next_obs"] = np.zeros((6, 2))
    states = moved(
        without_reward(prediction, batch), next_obs=prediction["next_obs"] + 1.0
    )
    error = states["next_obs"]
    # At the origin the gradient of s_0 s_1 is zero, and so is the Hessian's diagonal.
    assert loss_of("quadratic", states, batch, lambda s: s[0] * s[1]) == 0.0
    # Its eigenvectors are the diagonals, with eigenvalues of one and minus one.
    sums, differences = error[..., 0] + error[..., 1], error[..., 0] - error[..., 1]
    actual = loss_of("quadratic_eigen", states, batch, lambda s: s[0] * s[1])
    expected = np.mean((sums**2 / 4) ** 2 + (differences**2 / 4) ** 2)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_quadratic_eigen_is_invariant_to_rotations():
    batch, prediction = make_case(8)
    value, _ = make_value(9)
    turn, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))
    turned = batch | {name: batch[name] @ turn for name in ("obs", "next_obs")}
    states = moved(prediction, next_obs=prediction["next_obs"] @ turn)
    actual = loss_of("quadratic_eigen", states, turned, lambda s: value(turn @ s))
    expected = loss_of("quadratic_eigen", prediction, batch, value)
    # Eigenvectors are as exact as their eigenvalues are apart.
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_quadratic_is_invariant_to_the_units_of_each_dimension():
    batch, prediction = make_case(10)
    value, _ = make_value(11)
    scale = np.array([0.01, 1.0, 30.0])
    scaled = batch | {name: batch[name] * scale for name in ("obs", "next_obs")}
    states = moved(prediction, next_obs=prediction["next_obs"] * scale)
    actual = loss_of("quadratic", states, scaled, lambda s: value(s / scale))
    expected = loss_of("quadratic", prediction, batch, value)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def two_quadratics(state):
    """Hessians with the diagonals (1, 2, 3) and (-1, 0, 0), the second not diagonal."""
    first = jnp.sum(state) + 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * state**2)
    return jnp.stack([first, -0.5 * state[0] ** 2 + 5.0 * state[1] * state[2]])


def test_slopes_are_clipped_signed_gradients_of_rows_that_count():
    batch, value = make_batch(18, leading=(40,)), two_quadratics
    free = prepared_by(taylor.slopes, batch, value)
    expected = value_gradients.value_gradients(value, batch.next_obs)
    np.testing.assert_allclose(free, expected, rtol=EXACT)
    options = {"clip_quantile": 0.5, "mask_terminated": True}
    clipped = prepared_by(taylor.slopes, batch, value, **options)
    limited = value_gradients.clip(expected, 0.5, where=~batch.terminated)
    limited = np.where(batch.terminated[:, None, None], 0.0, limited)
    np.testing.assert_allclose(clipped, limited, rtol=EXACT)


def test_axis_terms_are_gradients_and_the_diagonals_of_hessians():
    batch = make_batch(45)
    terms = prepared_by(taylor.axis_terms, batch, two_quadratics)
    s = batch.next_obs
    first = 1.0 + np.array([1.0, 2.0, 3.0]) * s
    second = np.stack([-s[:, 0], 5.0 * s[:, 2], 5.0 * s[:, 1]], axis=-1)
    np.testing.assert_allclose(terms[:, 0, 0], first, rtol=EXACT)
    np.testing.assert_allclose(terms[:, 1, 0], second, rtol=EXACT)
    diagonals = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(terms[:, :, 1], np.broadcast_to(diagonals, (6, 2, 3)))


def test_eigenvector_terms_recompose_gradients_and_hessians():
    batch, (value, _) = make_batch(46), make_value(46)
    terms = prepared_by(taylor.eigenvector_terms, batch, value)
    slope, curvature, basis = terms[..., 0, :], terms[..., 1, :], terms[..., 2:, :]
    transposed = np.swapaxes(basis, -1, -2)
    eyes = np.broadcast_to(np.eye(3), (6, 2, 3, 3))
    np.testing.assert_allclose(basis @ transposed, eyes, atol=EXACT)
    np.testing.assert_allclose(
        (transposed * curvature[..., None, :]) @ basis,
        value_gradients.value_hessians(value, batch.next_obs),
        atol=1e-11,  # of Hessians of order ten
    )
    np.testing.assert_allclose(
        np.einsum("bkj,bkjd->bkd", slope, basis),
        value_gradients.value_gradients(value, batch.next_obs),
        atol=1e-11,
    )


TERMS = [taylor.axis_terms, taylor.eigenvector_terms]


@pytest.mark.parametrize("prepare", TERMS)
def test_terms_of_terminated_rows_are_masked(prepare):
    batch = make_batch(48)
    masked = prepared_by(prepare, batch, two_quadratics, mask_terminated=True)
    free = prepared_by(prepare, batch, two_quadratics)
    assert 0 < batch.terminated.sum() < 6
    alive = ~batch.terminated[:, None, None, None]
    expected = np.where(alive, free[..., :2, :], 0.0)
    np.testing.assert_array_equal(masked[..., :2, :], expected)


@pytest.mark.parametrize("prepare", [taylor.slopes, *TERMS])
def test_terms_are_all_taken_at_the_same_state(prepare):
    batch, (value, _) = make_batch(49), make_value(49)
    terms = prepared_by(prepare, batch, value, at="delta")
    moved_batch = batch.replace(next_obs=batch.next_obs - batch.obs)
    expected = prepared_by(prepare, moved_batch, value)
    np.testing.assert_allclose(terms, expected, rtol=1e-10)
