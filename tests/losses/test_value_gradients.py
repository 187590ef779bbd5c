"""The weights of the losses: value gradients, their options, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vagram_jax import config
from vagram_jax.losses import value_gradients as weights
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# Central differences in float64: rounding and truncation are each near 1e-10.
DIFFERENCES = 1e-8
# Second differences of fourth order: rounding and truncation are each near 1e-8.
SECOND_DIFFERENCES = 1e-6
# float64 arithmetic in another order.
EXACT = 1e-12

# Four linear value functions whose running sums, means and rows all differ.
ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])


def tanh_values(params, state):
    """The value functions of `oracles.values`."""
    features = jnp.tanh(
        jnp.einsum("khd,d->kh", params["inner"], state) + params["shift"]
    )
    return jnp.sum(params["outer"] * features, axis=-1)


def linear(state):
    return jnp.asarray(ROWS) @ state


def half_square(state):
    """A value whose gradient at a state is that state."""
    return 0.5 * jnp.sum(state**2)


def make_batch(seed=0, **sizes):
    return Transition(**oracles.random_batch(seed, **sizes))


def weights_of(value_fn, next_obs, terminated=None, where=None, **config):
    run = functools.partial(
        weights.value_gradient_weights, value_fn, config=weights.WeightConfig(**config)
    )
    return jax.jit(run)(next_obs, terminated=terminated, where=where)


def jit_of(weights_fn, batch, value_fn=None, where=None, **config):
    """The weights of a whole batch, compiled: eager steps are compiled one by one."""
    options = weights.WeightConfig(**config)
    return jax.jit(
        lambda batch, where: weights_fn(batch, value_fn, where=where, config=options)
    )(batch, where)


def gradients_of_states(value_fn, states):
    return jax.jit(functools.partial(weights.value_gradients, value_fn))(states)


def norms_of(gradients):
    return np.sqrt(np.sum(np.square(gradients), axis=-1))


def test_value_gradients_equal_central_differences():
    params, states = oracles.random_values(1), oracles.random_batch(2)["next_obs"]
    found = gradients_of_states(functools.partial(tanh_values, params), states)
    wanted = oracles.value_gradients(functools.partial(oracles.values, params), states)
    np.testing.assert_allclose(found, wanted, rtol=DIFFERENCES, atol=DIFFERENCES)


def test_value_gradients_of_linear_values_are_their_rows():
    found = gradients_of_states(linear, np.ones((5, 2)))
    np.testing.assert_array_equal(found, np.broadcast_to(ROWS, (5, 4, 2)))


def test_value_gradients_are_taken_at_each_state():
    states = oracles.random_batch(3)["next_obs"]
    found = gradients_of_states(half_square, states)
    np.testing.assert_array_equal(found, states[:, None])


def test_value_gradients_in_parts_equal_those_at_once():
    count = weights._STATES_AT_ONCE + 5  # the last part is not full
    states = oracles.random_batch(4, leading=(count,))["next_obs"]
    value = functools.partial(tanh_values, oracles.random_values(5))
    found = gradients_of_states(value, states)
    wanted = [
        weights.value_gradients(value, part) for part in (states[:9], states[-9:])
    ]
    np.testing.assert_allclose(found[:9], wanted[0], rtol=EXACT)
    np.testing.assert_allclose(found[-9:], wanted[1], rtol=EXACT)
    assert found.shape == (count, 2, 3)


def test_value_gradient_weights_equal_the_oracle():
    params, states = oracles.random_values(6, num_values=4), oracles.random_batch(7)
    found = weights_of(functools.partial(tanh_values, params), states["next_obs"])
    wanted = oracles.value_gradient_weights(
        functools.partial(oracles.values, params), states["next_obs"]
    )
    np.testing.assert_allclose(found, wanted, rtol=DIFFERENCES, atol=DIFFERENCES)


def test_value_gradient_weights_are_the_mean_of_squares_over_value_functions():
    # Not the square of the mean, (9/16, 1), nor squares of running sums, (20/4, 18/4).
    found = weights_of(linear, np.zeros((1, 2)))
    np.testing.assert_array_equal(found, [[5.0 / 4.0, 10.0 / 4.0]])


def test_value_gradient_weights_of_a_scalar_value_equal_those_of_one_value():
    states = oracles.random_batch(8)["next_obs"]
    found = weights_of(half_square, states)
    np.testing.assert_array_equal(
        found, weights_of(lambda state: half_square(state)[None], states)
    )


def test_value_gradient_weights_use_each_members_own_states():
    states = oracles.random_batch(9, leading=(3, 4))["next_obs"]
    found = weights_of(half_square, states)
    np.testing.assert_array_equal(found, states**2)


def test_value_gradient_weights_scale_with_the_square_of_the_value():
    states = oracles.random_batch(10)["next_obs"]
    value = functools.partial(tanh_values, oracles.random_values(11))
    # A power of two, so that the equality is exact.
    scaled = weights_of(lambda state: 4.0 * value(state) + 7.0, states)
    np.testing.assert_array_equal(scaled, 16.0 * weights_of(value, states))


@pytest.mark.parametrize("obs_dim", [1, 3, 8])
def test_value_gradient_weights_have_no_factor_of_the_dimension(obs_dim):
    found = weights_of(jnp.sum, np.zeros((2, obs_dim)))
    np.testing.assert_array_equal(found, np.ones((2, obs_dim)))


@pytest.mark.parametrize("obs_dim", [1, 3, 8])
def test_scale_by_dim_multiplies_by_the_dimension(obs_dim):
    found = weights_of(jnp.sum, np.zeros((2, obs_dim)), scale_by_dim=True)
    np.testing.assert_array_equal(found, np.full((2, obs_dim), obs_dim))


def test_normalize_gives_a_mean_of_one_over_the_rows_that_count():
    states = oracles.random_batch(12)["next_obs"]
    where = np.array([True, False, True, True, False, True])
    found = np.asarray(weights_of(half_square, states, where=where, normalize=True))
    np.testing.assert_allclose(found[where].mean(), 1.0, rtol=EXACT)
    np.testing.assert_allclose(found[0] / found[2], states[0] ** 2 / states[2] ** 2)


def test_normalize_undoes_the_scale_of_the_value():
    states = oracles.random_batch(13)["next_obs"]
    found = weights_of(half_square, states, normalize=True)
    scaled = weights_of(lambda s: 3.0 * half_square(s), states, normalize=True)
    np.testing.assert_allclose(found, scaled, rtol=EXACT)


def test_mask_terminated_removes_terminated_rows_alone():
    states = oracles.random_batch(14)["next_obs"]
    terminated = np.array([False, True, False, True, False, False])
    found = weights_of(half_square, states, terminated=terminated, mask_terminated=True)
    np.testing.assert_array_equal(
        found, np.where(terminated[:, None], 0.0, np.square(states))
    )


def test_terminated_rows_count_unless_masked():
    states = oracles.random_batch(14)["next_obs"]
    found = weights_of(half_square, states, terminated=np.ones(6, bool))
    np.testing.assert_array_equal(found, states**2)


def test_mse_coef_is_added_after_every_other_option():
    states, options = oracles.random_batch(15)["next_obs"], {"normalize": True}
    found = weights_of(half_square, states, mse_coef=0.5, **options)
    np.testing.assert_allclose(
        found, weights_of(half_square, states, **options) + 0.5, rtol=EXACT
    )


def test_where_gives_rows_that_do_not_count_no_weight():
    states = oracles.random_batch(16)["next_obs"]
    where = np.array([True, False, True, True, False, True])
    found = weights_of(half_square, states, where=where)
    np.testing.assert_array_equal(found, np.where(where[:, None], states**2, 0.0))


def test_where_keeps_garbage_out_of_quantile_and_mean():
    states, where = oracles.random_batch(17)["next_obs"], np.arange(6) < 4
    options = {"clip_quantile": 0.7, "normalize": True}
    garbage = np.where(where[:, None], states, [[np.nan, np.inf, 1e30]])
    found = weights_of(half_square, garbage, where=where, **options)
    wanted = weights_of(half_square, states[:4], **options)
    np.testing.assert_allclose(found[:4], wanted, rtol=EXACT)
    np.testing.assert_array_equal(found[4:], 0.0)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.95])
def test_clip_quantile_bounds_each_norm_by_that_quantile(quantile):
    batch = make_batch(18, leading=(40,))
    value = functools.partial(tanh_values, oracles.random_values(19))
    found = jit_of(weights.gradients_of, batch, value, clip_quantile=quantile)
    free = norms_of(jit_of(weights.gradients_of, batch, value))
    limit = np.quantile(free, quantile, axis=0)  # [K]: each function its own
    # One rounding of the factor, the product and the norm each.
    np.testing.assert_allclose(norms_of(found), np.minimum(free, limit), rtol=EXACT)


def test_clip_quantile_keeps_directions_and_small_gradients():
    batch = make_batch(20, leading=(40,))
    free = batch.next_obs
    found = jit_of(weights.gradients_of, batch, half_square, clip_quantile=0.5)
    found = np.asarray(found)[:, 0]
    small = norms_of(free) <= np.quantile(norms_of(free), 0.5)
    np.testing.assert_array_equal(found[small], free[small])
    cosine = np.sum(found * free, -1) / norms_of(found) / norms_of(free)
    np.testing.assert_allclose(cosine, 1.0, rtol=EXACT)


def test_clip_quantile_acts_on_the_weights():
    states = oracles.random_batch(21, leading=(40,))["next_obs"]
    found = weights_of(half_square, states, clip_quantile=0.5)
    limit = np.quantile(norms_of(states), 0.5)
    np.testing.assert_allclose(
        np.sqrt(np.sum(found, -1)), np.minimum(norms_of(states), limit), rtol=EXACT
    )


def test_clip_quantile_is_not_poisoned_by_a_row_with_nan():
    states = oracles.random_batch(22, leading=(9,))["next_obs"]
    poisoned = states.copy()
    poisoned[4, 1] = np.nan
    found = np.asarray(weights_of(half_square, poisoned, clip_quantile=0.5))
    others = np.arange(9) != 4
    wanted = weights_of(half_square, states[others], clip_quantile=0.5)
    np.testing.assert_allclose(found[others], wanted, rtol=EXACT)


def test_clip_quantile_of_one_clips_nothing():
    states = oracles.random_batch(23)["next_obs"]
    found = weights_of(half_square, states, clip_quantile=1.0)
    np.testing.assert_array_equal(found, states**2)


@pytest.mark.parametrize("rows", [1, 4])
def test_value_gradient_weights_of_a_flat_value_are_zero_with_every_option(rows):
    found = weights_of(
        lambda state: 0.0 * jnp.sum(state),
        np.ones((rows, 3)),
        terminated=np.zeros(rows, bool),
        where=np.ones(rows, bool),
        clip_quantile=0.95,
        normalize=True,
        mask_terminated=True,
        scale_by_dim=True,
    )
    np.testing.assert_array_equal(found, np.zeros((rows, 3)))


def test_value_gradient_weights_pass_no_gradient_to_the_value_function():
    states = jnp.asarray(oracles.random_batch(24)["next_obs"])

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(params, states):
        value = functools.partial(tanh_values, params)
        return jnp.sum(weights.value_gradient_weights(value, states))

    for found in jax.tree.leaves(gradient(oracles.random_values(25), states)):
        np.testing.assert_array_equal(found, 0.0)


def test_value_gradient_weights_pass_no_gradient_through_an_added_coefficient():
    def total(coef):
        config = weights.WeightConfig(mse_coef=coef)
        states = np.ones((2, 3))
        return jnp.sum(
            weights.value_gradient_weights(half_square, states, config=config)
        )

    assert float(jax.grad(total)(0.5)) == 0.0


def test_value_gradient_weights_are_the_same_under_jit():
    states = jnp.asarray(oracles.random_batch(26)["next_obs"])
    config = weights.WeightConfig(clip_quantile=0.8, normalize=True)
    value = jax.tree_util.Partial(tanh_values, oracles.random_values(27))
    run = functools.partial(weights.value_gradient_weights, config=config)
    np.testing.assert_allclose(
        jax.jit(run)(value, states), run(value, states), rtol=EXACT
    )


def test_value_gradient_weights_keep_the_dtype_of_the_states():
    states = jnp.ones((4, 3), jnp.float32)
    config = weights.WeightConfig(clip_quantile=0.8, normalize=True, mse_coef=0.1)
    found = jax.eval_shape(
        lambda s: weights.value_gradient_weights(half_square, s, config=config), states
    )
    assert found.dtype == jnp.float32


def test_from_gradients_uses_the_batch_and_every_option():
    batch, where = make_batch(28), np.arange(6) < 5
    options = {"mask_terminated": True, "normalize": True}
    found = jit_of(weights.from_gradients, batch, half_square, where, **options)
    wanted = weights_of(half_square, batch.next_obs, batch.terminated, where, **options)
    np.testing.assert_array_equal(found, wanted)


def test_gradients_of_masks_terminated_rows():
    batch = make_batch(29)
    found = jit_of(weights.gradients_of, batch, half_square, mask_terminated=True)
    np.testing.assert_array_equal(
        found[:, 0], np.where(batch.terminated[:, None], 0.0, batch.next_obs)
    )


def test_from_values_are_mean_magnitudes_over_their_mean():
    batch = make_batch(30)
    found = jit_of(weights.from_values, batch, lambda s: jnp.array([1.0, -3.0]) * s[0])
    magnitude = 2.0 * np.abs(batch.next_obs[:, 0])
    wanted = np.broadcast_to((magnitude / magnitude.mean())[:, None], (6, 3))
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_from_values_takes_the_mean_of_the_rows_that_count():
    batch, where = make_batch(31), np.arange(6) < 4
    found = jit_of(weights.from_values, batch, lambda s: s[0], where)
    magnitude = np.abs(batch.next_obs[:, 0])
    np.testing.assert_allclose(
        found[:, 0], magnitude / magnitude[:4].mean(), rtol=EXACT
    )


def test_from_values_of_a_zero_value_are_zero():
    found = jit_of(weights.from_values, make_batch(32), lambda s: 0.0 * s[0])
    np.testing.assert_array_equal(found, np.zeros((6, 3)))


@pytest.mark.parametrize("leading", [(8,), (2, 8)])
def test_from_variances_are_one_over_the_variance_of_each_target(leading):
    batch = make_batch(33, leading=leading)
    where = np.arange(8) < 6
    where = np.broadcast_to(where, leading)
    found = jit_of(weights.from_variances, batch, where=where)
    targets = np.concatenate([batch.next_obs - batch.obs, batch.reward[..., None]], -1)
    _, std = oracles.moments(targets[where], np.ones(where.sum(), bool))
    np.testing.assert_allclose(
        found, np.broadcast_to(1.0 / std**2, (*leading, 4)), rtol=EXACT
    )


@pytest.mark.parametrize(
    ("value_fn", "named"),
    [
        (lambda s: s[:2, None], r"value_fn\(state \[3\]\) has shape \[2, 1\]"),
        (lambda s: (s[0], s[1]), "is a tuple"),
        (lambda s: jnp.argmax(s), "has dtype int"),
        (lambda s: s[0] > 0.0, "has dtype bool"),
    ],
)
def test_check_value_fn_refuses_another_form_by_name(value_fn, named):
    with pytest.raises(ValueError, match=named):
        weights.check_value_fn(value_fn, 3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda batch, value: weights.value_gradients(value, batch.next_obs),
        lambda batch, value: weights.value_gradient_weights(value, batch.next_obs),
        weights.gradients_of,
        weights.from_gradients,
        weights.from_mean_gradients,
        weights.from_values,
        weights.taylor_terms,
        weights.taylor_terms_of_eigenbasis,
        lambda batch, value: weights.values_of(value, batch.next_obs),
        lambda batch, value: weights.next_values(
            batch, value, config=weights.WeightConfig(discount=(0.9,))
        ),
    ],
)
def test_every_weight_refuses_a_value_with_a_batch_axis(ask):
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        ask(make_batch(34), lambda state: state[:2, None])


def test_gradients_are_taken_at_the_difference_if_asked():
    batch = make_batch(35)
    found = jit_of(weights.from_gradients, batch, half_square, gradient_at="delta")
    delta = batch.next_obs - batch.obs
    np.testing.assert_array_equal(found, weights_of(half_square, delta))
    signed = jit_of(weights.gradients_of, batch, half_square, gradient_at="delta")
    np.testing.assert_array_equal(signed[:, 0], delta)


def test_a_gradient_share_of_one_leaves_every_bit():
    batch, where = make_batch(36), np.arange(6) < 5
    options = {"gradient_share": (1.0,), "mixed_with": "mse_normalized"}
    found = jit_of(weights.from_gradients, batch, half_square, where, **options)
    wanted = weights_of(half_square, batch.next_obs, where=where)
    np.testing.assert_array_equal(found, wanted)


def test_a_gradient_share_of_none_is_the_squared_error():
    where = np.arange(6) < 5
    found = jit_of(
        weights.from_gradients,
        make_batch(37),
        half_square,
        where,
        gradient_share=(0.0,),
    )
    np.testing.assert_array_equal(found, np.where(where[:, None], np.ones((6, 3)), 0.0))


def test_a_gradient_share_of_none_is_the_squared_error_of_standardised_targets():
    batch, where = make_batch(38), np.arange(6) < 5
    options = {"gradient_share": (0.0,), "mixed_with": "mse_normalized"}
    found = jit_of(weights.from_gradients, batch, half_square, where, **options)
    _, std = oracles.moments(batch.next_obs - batch.obs, where)
    wanted = std**-2 / np.mean(std**-2)
    np.testing.assert_allclose(found[:5], np.broadcast_to(wanted, (5, 3)), rtol=EXACT)
    np.testing.assert_array_equal(found[5], 0.0)


@pytest.mark.parametrize("other", ["mse", "mse_normalized"])
def test_a_gradient_share_mixes_in_proportion(other):
    batch, where = make_batch(39), np.arange(6) < 5
    found, squared, plain = [
        jit_of(
            weights.from_gradients,
            batch,
            half_square,
            where,
            normalize=True,
            mixed_with=other,
            gradient_share=(share,),
        )
        for share in (0.25, 0.0, 1.0)
    ]
    np.testing.assert_allclose(found, 0.25 * plain + 0.75 * squared, rtol=EXACT)
    np.testing.assert_array_equal(found[5], 0.0)


@pytest.mark.parametrize("leading", [(6,), (2, 6)])
def test_from_mean_gradients_are_means_over_the_rows_that_count(leading):
    where = np.broadcast_to(np.arange(6) < 4, leading)
    batch = make_batch(40, leading=leading)
    squares = batch.next_obs[where] ** 2
    garbage = np.where(where[..., None], batch.next_obs, [np.nan, np.inf, 1e30])
    batch = batch.replace(next_obs=garbage)
    found = jit_of(weights.from_mean_gradients, batch, half_square, where)
    wanted = np.broadcast_to(squares.mean(axis=0), (*leading, 3))
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_values_of_are_those_of_each_function_at_each_state():
    params, states = oracles.random_values(41), oracles.random_batch(41)["next_obs"]
    run = functools.partial(weights.values_of, functools.partial(tanh_values, params))
    found = jax.jit(run)(np.stack([states, states[::-1]]))
    wanted = [oracles.values(params, state) for state in states]
    np.testing.assert_allclose(found, [wanted, wanted[::-1]], rtol=EXACT)


def hessians_of(value_fn, states):
    return jax.jit(functools.partial(weights.value_hessians, value_fn))(states)


def test_value_hessians_equal_second_differences():
    params, states = oracles.random_values(42), oracles.random_batch(42)["next_obs"]
    found = hessians_of(functools.partial(tanh_values, params), states)
    wanted = oracles.value_hessians(functools.partial(oracles.values, params), states)
    assert found.shape == (6, 2, 3, 3)
    # Values and their second derivatives are of order one and ten.
    np.testing.assert_allclose(found, wanted, atol=SECOND_DIFFERENCES)


def test_value_hessians_in_parts_equal_those_at_once():
    count = weights._STATES_AT_ONCE + 5  # the last part is not full
    states = oracles.random_batch(43, leading=(count,))["next_obs"]
    value = functools.partial(tanh_values, oracles.random_values(44))
    found = hessians_of(value, states)
    ends = hessians_of(value, np.concatenate([states[:9], states[-9:]]))
    np.testing.assert_allclose(found[:9], ends[:9], rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(found[-9:], ends[9:], rtol=EXACT, atol=EXACT)
    assert found.shape == (count, 2, 3, 3)


def two_quadratics(state):
    """Hessians with the diagonals (1, 2, 3) and (-1, 0, 0), the second not diagonal."""
    first = jnp.sum(state) + 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * state**2)
    return jnp.stack([first, -0.5 * state[0] ** 2 + 5.0 * state[1] * state[2]])


def test_taylor_terms_are_gradients_and_the_diagonals_of_hessians():
    batch = make_batch(45)
    found = jit_of(weights.taylor_terms, batch, two_quadratics)
    s = batch.next_obs
    first = 1.0 + np.array([1.0, 2.0, 3.0]) * s
    second = np.stack([-s[:, 0], 5.0 * s[:, 2], 5.0 * s[:, 1]], axis=-1)
    np.testing.assert_allclose(found[:, 0, 0], first, rtol=EXACT)
    np.testing.assert_allclose(found[:, 1, 0], second, rtol=EXACT)
    diagonals = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(found[:, :, 1], np.broadcast_to(diagonals, (6, 2, 3)))


def test_taylor_terms_of_eigenbasis_make_up_gradients_and_hessians():
    batch, params = make_batch(46), oracles.random_values(46)
    value = functools.partial(tanh_values, params)
    found = np.asarray(jit_of(weights.taylor_terms_of_eigenbasis, batch, value))
    slope, curvature, basis = found[..., 0, :], found[..., 1, :], found[..., 2:, :]
    turned_back = np.swapaxes(basis, -1, -2)
    eyes = np.broadcast_to(np.eye(3), (6, 2, 3, 3))
    np.testing.assert_allclose(basis @ turned_back, eyes, atol=EXACT)
    np.testing.assert_allclose(
        (turned_back * curvature[..., None, :]) @ basis,
        hessians_of(value, batch.next_obs),
        atol=1e-11,  # of Hessians of order ten
    )
    np.testing.assert_allclose(
        np.einsum("bkj,bkjd->bkd", slope, basis),
        gradients_of_states(value, batch.next_obs),
        atol=1e-11,
    )


def test_taylor_terms_of_eigenbasis_keep_the_axes_without_curvature():
    batch = make_batch(47, obs_dim=2)
    found = jit_of(weights.taylor_terms_of_eigenbasis, batch, linear)
    wanted = np.stack([[row, [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]] for row in ROWS])
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, (6, 4, 4, 2)))


TERMS = [weights.taylor_terms, weights.taylor_terms_of_eigenbasis]


@pytest.mark.parametrize("terms_of", TERMS)
def test_taylor_terms_are_masked_with_their_gradients(terms_of):
    batch = make_batch(48)
    found = jit_of(terms_of, batch, two_quadratics, mask_terminated=True)
    free = jit_of(terms_of, batch, two_quadratics)
    assert 0 < batch.terminated.sum() < 6
    kept = ~batch.terminated[:, None, None, None]
    np.testing.assert_array_equal(
        found[..., :2, :], np.where(kept, free[..., :2, :], 0.0)
    )


@pytest.mark.parametrize("terms_of", TERMS)
def test_taylor_terms_are_all_taken_at_one_state(terms_of):
    batch = make_batch(49)
    value = functools.partial(tanh_values, oracles.random_values(49))
    found = jit_of(terms_of, batch, value, gradient_at="delta")
    there = batch.replace(next_obs=batch.next_obs - batch.obs)
    np.testing.assert_allclose(found, jit_of(terms_of, there, value), rtol=1e-10)


# The states before and after each row of a full ring, whose oldest row is the fourth.
# One episode is cut after the fifth row, at 3, and one ends after the seventh, at 5.
RING = np.array(
    [[6, 7], [7, 2.5], [2.5, 1.5], [1, 2], [2, 3], [9, 4], [4, 5], [8, 6]], float
)
REWARDS = np.array([6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0])


def make_ring(**changed):
    fields = {
        "obs": RING[:, :1],
        "action": np.zeros((8, 1)),
        "reward": REWARDS,
        "next_obs": RING[:, 1:],
        "terminated": np.arange(8) == 6,
        "truncated": np.arange(8) == 4,
    }
    return Transition(**(fields | changed))


def tenfold(state):
    return jnp.stack([10.0 * state[0], -state[0]])


def bootstrapped(batch, where=None):
    return jit_of(weights.next_values, batch, tenfold, where, discount=(0.5,))


def test_next_values_bootstrap_from_the_row_that_follows():
    wanted = [
        [7 + 0.5 * 25, 7 - 0.5 * 2.5],
        [8 + 0.5 * 15, 8 - 0.5 * 1.5],
        [15, -1.5],  # the newest row: the oldest follows, from another state
        [2 + 0.5 * 30, 2 - 0.5 * 3],
        [30, -3],  # cut: its value goes on
        [4, 4],  # the next row terminates, and no value follows
        [50, -5],  # terminated
        [6 + 0.5 * 70, 6 - 0.5 * 7],  # around the end of the ring
    ]
    np.testing.assert_array_equal(bootstrapped(make_ring()), wanted)


@pytest.mark.parametrize(("row", "value"), [(4, 30.0), (6, 50.0)])
def test_next_values_do_not_go_on_after_an_end_in_the_first_state_of_the_next(
    row, value
):
    obs = RING[:, :1].copy()
    obs[row + 1] = RING[row, 1]
    np.testing.assert_array_equal(bootstrapped(make_ring(obs=obs))[row, 0], value)


def test_next_values_do_not_go_on_in_rows_that_do_not_count():
    where = np.arange(8) < 4
    found = bootstrapped(make_ring(), where)
    # From the fourth row the fifth would go on.
    np.testing.assert_array_equal(found[:4, 0], [19.5, 15.5, 15.0, 20.0])


def test_next_values_never_read_garbage_in_rows_that_do_not_count():
    where = np.arange(8) < 4
    broken = [np.where(where[:, None], x, np.nan) for x in (RING[:, :1], RING[:, 1:])]
    batch = make_ring(
        obs=broken[0], next_obs=broken[1], reward=np.where(where, REWARDS, np.nan)
    )
    found = bootstrapped(batch, where)
    np.testing.assert_array_equal(found[:4], bootstrapped(make_ring(), where)[:4])


def test_next_values_pass_no_gradient_to_the_value_function():
    @jax.grad
    def gradient(scale):
        options = weights.WeightConfig(discount=(0.5,))
        batch = jax.tree.map(jnp.asarray, make_ring())
        found = weights.next_values(batch, lambda s: scale * tenfold(s), config=options)
        return jnp.sum(found)

    assert float(gradient(1.0)) == 0.0


def test_next_values_refuse_to_guess_a_discount():
    with pytest.raises(config.ConfigError, match=r"weights\.discount=\(\); one number"):
        weights.next_values(make_ring(), tenfold)
