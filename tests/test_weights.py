"""The weights of the losses: value gradients, their options, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vagram_jax import weights
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# Central differences in float64: rounding and truncation are each near 1e-10.
DIFFERENCES = 1e-8
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
        weights.from_values,
    ],
)
def test_every_weight_refuses_a_value_with_a_batch_axis(ask):
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        ask(make_batch(34), lambda state: state[:2, None])
