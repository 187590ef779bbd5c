"""Value gradients, Hessians and values, and the weights derived from them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from loss_cases import DIFFERENCES, EXACT, SECOND_DIFFERENCES, make_batch, make_value

from vagram_jax import losses, schedules
from vagram_jax.config import ConfigError
from vagram_jax.losses import checks, value_gradients
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig

pytestmark = pytest.mark.usefixtures("x64")

# Four linear value functions whose running sums, means and rows all differ.
ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])


def linear(state):
    return jnp.asarray(ROWS) @ state


def half_square(state):
    """A value whose gradient at a state is that state."""
    return 0.5 * jnp.sum(state**2)


def states_of(seed, rows=6):
    return oracles.random_batch(seed, leading=(rows,))["next_obs"]


def jitted(function, value_fn, states, **options):
    return jax.jit(functools.partial(function, value_fn, **options))(states)


def weights_of(value_fn, states, where=None, **options):
    run = functools.partial(value_gradients.value_gradient_weights, value_fn, **options)
    return np.asarray(jax.jit(run)(states, where=where))


def norms_of(gradients):
    return np.sqrt(np.sum(np.square(gradients), axis=-1))


def test_value_gradients_equal_central_differences():
    (value, plain), states = make_value(1), states_of(2)
    gradients = jitted(value_gradients.value_gradients, value, states)
    expected = oracles.value_gradients(plain, states)
    np.testing.assert_allclose(gradients, expected, rtol=DIFFERENCES, atol=DIFFERENCES)


def test_value_gradients_of_linear_values_are_their_rows():
    gradients = jitted(value_gradients.value_gradients, linear, np.ones((5, 2)))
    np.testing.assert_array_equal(gradients, np.broadcast_to(ROWS, (5, 4, 2)))


def test_value_hessians_equal_second_differences():
    (value, plain), states = make_value(42), states_of(42)
    hessians = jitted(value_gradients.value_hessians, value, states)
    assert hessians.shape == (6, 2, 3, 3)
    expected = oracles.value_hessians(plain, states)
    # Values and their second derivatives are of order one and ten.
    np.testing.assert_allclose(hessians, expected, atol=SECOND_DIFFERENCES)


@pytest.mark.parametrize("name", ["value_gradients", "value_hessians"])
def test_derivatives_in_parts_equal_those_at_once(name, monkeypatch):
    derive, states, (value, _) = (
        getattr(value_gradients, name),
        states_of(4),
        make_value(5),
    )
    whole = jitted(derive, value, states)
    monkeypatch.setattr(value_gradients, "_STATES_AT_ONCE", 4)  # the last part is short
    parts = jitted(derive, value, states)
    np.testing.assert_allclose(parts, whole, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["value_gradients", "value_hessians"])
def test_blocks_behind_the_last_row_that_counts_are_zero(name, monkeypatch):
    derive, (value, _) = getattr(value_gradients, name), make_value(5)
    states = np.concatenate([states_of(4), states_of(5)])[:11]
    whole = jitted(derive, value, states)
    monkeypatch.setattr(value_gradients, "_STATES_AT_ONCE", 2)
    monkeypatch.setattr(value_gradients, "_STATES_IN_A_BLOCK", 4)
    for count, computed in ((0, 0), (1, 4), (4, 4), (5, 8), (11, 11)):
        where = np.arange(11) < count
        actual = jax.jit(functools.partial(derive, value))(states, where=where)
        np.testing.assert_allclose(
            actual[:computed], whole[:computed], rtol=EXACT, atol=EXACT
        )
        assert not np.any(actual[computed:])


def test_values_of_are_those_of_each_function_at_each_state():
    (value, plain), states = make_value(41), states_of(41)
    both = np.stack([states, states[::-1]])
    expected = [plain(state) for state in states]
    np.testing.assert_allclose(
        jitted(value_gradients.values_of, value, both),
        [expected, expected[::-1]],
        rtol=EXACT,
    )


def test_value_gradient_weights_equal_the_oracle():
    (value, plain), states = make_value(6, num_values=4), states_of(7)
    expected = oracles.value_gradient_weights(plain, states)
    np.testing.assert_allclose(
        weights_of(value, states), expected, rtol=DIFFERENCES, atol=DIFFERENCES
    )


def test_value_gradient_weights_are_the_mean_of_squares_over_value_functions():
    # Not the square of the mean, (9/16, 1), nor squares of running sums, (20/4, 18/4).
    weights = weights_of(linear, np.zeros((1, 2)))
    np.testing.assert_array_equal(weights, [[5.0 / 4.0, 10.0 / 4.0]])


def test_value_gradient_weights_take_scalar_values_and_any_leading_axes():
    states = oracles.random_batch(9, leading=(3, 4))["next_obs"]
    np.testing.assert_array_equal(weights_of(half_square, states), states**2)
    one_value = weights_of(lambda state: half_square(state)[None], states)
    np.testing.assert_array_equal(one_value, states**2)


def test_value_gradient_weights_scale_with_the_square_of_the_value():
    states, (value, _) = states_of(10), make_value(11)
    # A power of two, so that the equality is exact.
    scaled = weights_of(lambda state: 4.0 * value(state) + 7.0, states)
    np.testing.assert_array_equal(scaled, 16.0 * weights_of(value, states))


@pytest.mark.parametrize("obs_dim", [1, 3, 8])
def test_scale_by_dim_multiplies_by_the_dimension(obs_dim):
    ones = np.ones((2, obs_dim))
    np.testing.assert_array_equal(weights_of(jnp.sum, ones), ones)
    scaled = weights_of(jnp.sum, ones, scale_by_dim=True)
    np.testing.assert_array_equal(scaled, obs_dim * ones)


def test_normalize_gives_a_mean_of_one_over_the_rows_that_count():
    states, where = states_of(12), np.array([True, False, True, True, False, True])
    weights = weights_of(half_square, states, where=where, normalize=True)
    np.testing.assert_allclose(weights[where].mean(), 1.0, rtol=EXACT)
    np.testing.assert_allclose(weights[0] / weights[2], states[0] ** 2 / states[2] ** 2)
    scaled = weights_of(lambda s: 3.0 * half_square(s), states, where, normalize=True)
    np.testing.assert_allclose(scaled, weights, rtol=EXACT)


def test_rows_that_do_not_count_get_no_weight():
    states, where = states_of(16), np.array([True, False, True, True, False, True])
    weights = weights_of(half_square, states, where=where)
    np.testing.assert_array_equal(weights, np.where(where[:, None], states**2, 0.0))


def test_rows_that_do_not_count_stay_out_of_quantile_and_mean():
    states, where = states_of(17), np.arange(6) < 4
    options = {"clip_quantile": 0.7, "normalize": True}
    garbage = np.where(where[:, None], states, [[np.nan, np.inf, 1e30]])
    weights = weights_of(half_square, garbage, where=where, **options)
    expected = weights_of(half_square, states[:4], **options)
    np.testing.assert_allclose(weights[:4], expected, rtol=EXACT)
    np.testing.assert_array_equal(weights[4:], 0.0)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.95])
def test_clip_bounds_each_norm_by_the_quantile_of_its_value_function(quantile):
    gradients = np.random.default_rng(18).normal(size=(40, 2, 3)) * [[1.0], [5.0]]
    clipped = np.asarray(
        jax.jit(lambda g: value_gradients.clip(g, quantile))(gradients)
    )
    free = norms_of(gradients)
    limit = np.quantile(free, quantile, axis=0)  # [K]
    # One rounding of the factor, the product and the norm each.
    np.testing.assert_allclose(norms_of(clipped), np.minimum(free, limit), rtol=EXACT)
    np.testing.assert_array_equal(clipped[free <= limit], gradients[free <= limit])
    cosine = np.sum(clipped * gradients, -1) / norms_of(clipped) / free
    np.testing.assert_allclose(cosine, 1.0, rtol=EXACT)


def test_clip_quantile_acts_on_the_weights():
    states = states_of(21, rows=40)
    weights = weights_of(half_square, states, clip_quantile=0.5)
    limit = np.quantile(norms_of(states), 0.5)
    np.testing.assert_allclose(
        np.sqrt(np.sum(weights, -1)), np.minimum(norms_of(states), limit), rtol=EXACT
    )


def test_clip_quantile_ignores_a_row_with_nan():
    states, others = states_of(22, rows=9), np.arange(9) != 4
    poisoned = states.copy()
    poisoned[4, 1] = np.nan
    weights = weights_of(half_square, poisoned, clip_quantile=0.5)
    expected = weights_of(half_square, states[others], clip_quantile=0.5)
    np.testing.assert_allclose(weights[others], expected, rtol=EXACT)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("option", ["normalize", "scale_by_dim"])
def test_weights_of_a_flat_value_are_zero_with_every_option(rows, option):
    weights = weights_of(
        lambda state: 0.0 * jnp.sum(state),
        np.ones((rows, 3)),
        where=np.ones(rows, bool),
        clip_quantile=0.95,
        **{option: True},
    )
    np.testing.assert_array_equal(weights, np.zeros((rows, 3)))


def test_clip_quantile_of_mostly_flat_values_is_that_of_the_other_gradients():
    states = states_of(23, rows=100)
    states[10:] = 0.0  # 90 gradients of zero
    weights = weights_of(half_square, states, clip_quantile=0.5)
    expected = weights_of(half_square, states[:10], clip_quantile=0.5)
    np.testing.assert_allclose(weights[:10], expected, rtol=EXACT)
    assert np.all(np.sum(weights[:10], axis=-1) > 0.0)
    np.testing.assert_array_equal(weights[10:], 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_normalize_leaves_out_a_row_that_is_not_finite_but_keeps_it_visible(bad):
    states, others = states_of(25), np.arange(6) != 2
    poisoned = states.copy()
    poisoned[2, 1] = bad
    weights = weights_of(half_square, poisoned, normalize=True)
    expected = weights_of(half_square, states[others], normalize=True)
    np.testing.assert_allclose(weights[others], expected, rtol=EXACT)
    assert not np.isfinite(weights[2, 1])


@pytest.mark.parametrize(
    "mask", [np.ones((6, 1), bool), np.ones(5, bool), np.ones(6)], ids=str
)
def test_a_mask_that_would_broadcast_or_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match=r"where has shape .*; it must be \[6\] and b"):
        weights_of(half_square, states_of(13), where=mask)
    for name in sorted(PREPARED):
        prepare = losses.bind(losses.get(name), discount=0.9).prepare
        with pytest.raises(ValueError, match=r"where has shape .*; it must be \[6\]"):
            prepare(make_batch(13), half_square, where=mask)


def test_value_gradient_weights_pass_no_gradient():
    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(scale, states):
        weights = value_gradients.value_gradient_weights(
            lambda state: scale * half_square(state), states
        )
        return jnp.sum(weights)

    for leaf in gradient(2.0, states_of(24)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_value_gradient_weights_are_the_same_under_jit():
    states, value = jnp.asarray(states_of(26)), jax.tree_util.Partial(half_square)
    run = functools.partial(
        value_gradients.value_gradient_weights, clip_quantile=0.8, normalize=True
    )
    chex.assert_trees_all_close(
        jax.jit(run)(value, states), run(value, states), rtol=EXACT
    )


def test_value_gradient_weights_keep_the_dtype_of_the_states():
    states = jnp.ones((4, 3), jnp.float32)
    weights = jax.eval_shape(
        lambda s: value_gradients.value_gradient_weights(
            half_square, s, clip_quantile=0.8, normalize=True
        ),
        states,
    )
    assert weights.dtype == jnp.float32


def test_normalize_and_scale_by_dim_together_are_refused():
    with pytest.raises(ConfigError, match="scale_by_dim=True has no effect with norm"):
        weights_of(jnp.sum, np.ones((2, 3)), normalize=True, scale_by_dim=True)


@pytest.mark.parametrize("quantile", [0.0, 1.5, -1.0, np.nan])
def test_a_clip_quantile_outside_its_range_is_refused(quantile):
    with pytest.raises(ConfigError, match=r"clip_quantile=.*; accepted: above 0"):
        weights_of(jnp.sum, np.ones((2, 3)), clip_quantile=quantile)


def test_gradient_states_are_next_states_or_differences():
    batch = make_batch(35)
    states = value_gradients.gradient_states(batch, GradientConfig())
    np.testing.assert_array_equal(states, batch.next_obs)
    delta = value_gradients.gradient_states(batch, GradientConfig(at="delta"))
    np.testing.assert_array_equal(delta, batch.next_obs - batch.obs)
    with pytest.raises(ConfigError, match="at='obs'; accepted: next_obs, delta"):
        value_gradients.gradient_states(batch, GradientConfig(at="obs"))


def test_counted_rows_leave_out_terminated_ones_if_masked():
    batch, where = make_batch(14), np.arange(6) < 5
    masking = GradientConfig(mask_terminated=True)
    assert 0 < batch.terminated[where].sum() < 5
    counted = value_gradients.counted_rows(batch, where, masking)
    np.testing.assert_array_equal(counted, where & ~batch.terminated)
    alive = value_gradients.counted_rows(batch, None, masking)
    np.testing.assert_array_equal(alive, ~batch.terminated)
    assert value_gradients.counted_rows(batch, where, GradientConfig()) is where
    with pytest.raises(ValueError, match=r"batch\.terminated is missing; add it"):
        value_gradients.counted_rows(batch.replace(terminated=None), where, masking)


def test_resolve_replaces_schedules_by_their_values():
    config = WeightConfig(
        gradient_coef=schedules.Schedule(0.0, 1.0, 100.0, 200.0),
        mse_coef=schedules.constant(0.5),
        normalize=True,
    )
    for env_steps, expected in [(0, 0.0), (150, 0.5), (300, 1.0)]:
        resolved = jax.jit(value_gradients.resolve)(config, env_steps)
        assert value_gradients.coefficients(resolved) == (expected, 0.5)
        assert resolved.normalize


def test_coefficients_are_numbers_or_constant_schedules():
    assert value_gradients.coefficients(WeightConfig()) == (1.0, 0.0)
    given = WeightConfig(gradient_coef=0.25, mse_coef=2)
    assert value_gradients.coefficients(given) == (0.25, 2)
    ramp = WeightConfig(mse_coef=schedules.Schedule(1.0, 0.0, 5.0, 5.0))
    with pytest.raises(ConfigError, match=r"mse_coef=.* a constant is accepted"):
        value_gradients.coefficients(ramp)
    with pytest.raises(ConfigError, match=r"gradient_coef=.* a constant is accepted"):
        jax.jit(value_gradients.coefficients)(WeightConfig())
    with pytest.raises(ConfigError, match="make all weights zero"):
        value_gradients.coefficients(WeightConfig(gradient_coef=0))


@pytest.mark.parametrize(
    ("value_fn", "message"),
    [
        (lambda s: s[:2, None], r"value_fn\(state \[3\]\) has shape \[2, 1\]"),
        (lambda s: (s[0], s[1]), "is a tuple"),
        (lambda s: jnp.argmax(s), "has dtype int"),
        (lambda s: s[0] > 0.0, "has dtype bool"),
        (lambda s: s, r"return jnp\.eye\(3\) @ state"),
        (lambda s: -jnp.square(s), "has the shape of the state"),
        (lambda s: s[:, 0], r"lambda state: value_fn\(state\[None\]\)\[0\]"),
        (np.linalg.norm, r"numbers; JAX traces .* use jax\.numpy"),
        (lambda s: float(s[0]), r"numbers \(.*test_value_gradients\.py:\d+\); JAX"),
        (lambda s: s[0] if s[0] > 0.0 else s[1], r"jnp\.where instead of if"),
        (3.0, "a float was given; a function of one state is accepted"),
    ],
)
def test_a_value_function_of_another_form_is_refused(value_fn, message):
    with pytest.raises(ValueError, match=message):
        checks.check_value_fn(value_fn, 3)


@pytest.mark.parametrize(
    "value_fn",
    [
        lambda s: jnp.eye(3) @ s,
        lambda s: jnp.stack([s[0], s[1], s[0] * s[2]]),
        lambda s: s[..., :3],
    ],
)
def test_as_many_value_functions_as_dimensions_are_accepted(value_fn):
    checks.check_value_fn(value_fn, 3)


def test_a_state_of_one_dimension_may_be_its_own_value():
    checks.check_value_fn(lambda state: state, 1)


def test_an_error_of_a_value_function_says_when_it_was_called():
    with pytest.raises(ZeroDivisionError) as caught:
        checks.check_value_fn(lambda state: 1 / 0, 3)
    note = "value_fn: value_fn(state [3]): while it was called with one state"
    assert note in caught.value.__notes__


@pytest.mark.parametrize(
    "derive",
    [
        value_gradients.value_gradients,
        value_gradients.value_hessians,
        value_gradients.value_gradient_weights,
        value_gradients.values_of,
    ],
)
def test_everything_refuses_a_value_with_a_batch_axis(derive):
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        derive(lambda state: state[:2, None], states_of(34))


PREPARED = {name for name, loss in losses.LOSSES.items() if loss.prepare}


@pytest.mark.parametrize("name", sorted(PREPARED - {"mse_normalized"}))
def test_every_prepare_refuses_a_value_with_a_batch_axis(name):
    prepare = losses.bind(losses.get(name), discount=0.9).prepare
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        prepare(make_batch(34), lambda state: state[:2, None])
