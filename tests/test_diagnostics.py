"""Attention of losses to state dimensions, against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import diagnostics, dynamics, losses
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# float64 arithmetic in another order.
EXACT = 1e-12
ROWS, OBS_DIM = 12, 4
SLOPE = np.array([1.0, -2.0, 0.0, 0.5])


def make_batch(seed=0):
    """Transitions whose last state dimension never changes."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(ROWS, OBS_DIM))
    change = rng.normal(size=(ROWS, OBS_DIM)) * [0.5, 1.0, 3.0, 0.0]
    return Transition(
        obs=obs,
        action=rng.uniform(-1, 1, (ROWS, 1)),
        reward=rng.normal(size=ROWS),
        next_obs=obs + change,
        terminated=np.zeros(ROWS, bool),
        truncated=np.zeros(ROWS, bool),
        weight=rng.uniform(0.5, 2.0, ROWS),
    )


def make_member(gaussian=False):
    head = "gaussian" if gaussian else "deterministic"
    config = dynamics.DynamicsConfig(hidden=(), num_members=1, num_elites=1, head=head)
    params = jax.eval_shape(
        lambda: dynamics.init_dynamics(
            jax.random.key(0), obs_dim=OBS_DIM, action_dim=1, config=config
        )
    )
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), params)
    network = jax.tree.map(lambda x: x[0], drawn.network)
    if gaussian:
        network["params"]["min_log_var"] = np.full(OBS_DIM + 1, -10.0)
        network["params"]["max_log_var"] = np.full(OBS_DIM + 1, 0.5)
    ones = jax.tree.map(lambda x: np.ones(x.shape), params.normalizer)
    return drawn.replace(network=network, normalizer=ones)


def linear(state):
    return jnp.dot(SLOPE, state)


def curved(state):
    return jnp.stack([jnp.sum(state**2), jnp.sin(state[0]) * state[1]])


@functools.partial(jax.jit, static_argnames=("name", "value_fn"))
def attention_of(name, batch, value_fn=linear, params=None):
    loss = losses.bind(losses.get(name), discount=0.9)
    prepared = None
    if loss.prepare is not None:
        prepared = loss.prepare(batch, value_fn, where=jnp.ones(ROWS, bool))
    params = make_member(loss.gaussian) if params is None else params
    return diagnostics.attention(params, batch, value_fn, prepared, loss=loss)


def variances(batch):
    return np.var(batch.next_obs - batch.obs, axis=0)


def assert_shares(actual, expected):
    np.testing.assert_allclose(
        actual, expected / np.sum(expected), rtol=EXACT, atol=EXACT
    )


def test_attention_is_zero_for_a_loss_without_curvature():
    assert np.all(attention_of("value_l1", make_batch(), linear) == 0.0)


@pytest.mark.parametrize("name", sorted({*losses.LOSSES} - {"value_l1"}))
def test_attention_shares_sum_to_one(name):
    actual = attention_of(name, make_batch(), curved)
    assert np.all(actual >= 0.0)
    np.testing.assert_allclose(np.sum(actual), 1.0, rtol=EXACT)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_attention_is_zero_where_nothing_changes(name):
    assert attention_of(name, make_batch(), curved)[3] == 0.0


def test_attention_of_mse_is_proportional_to_the_variance():
    batch = make_batch()
    assert_shares(attention_of("mse", batch), variances(batch))


def test_attention_of_mse_normalized_is_equal_in_all_varying_dimensions():
    actual = attention_of("mse_normalized", make_batch())
    assert_shares(actual, np.array([1.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("name", ["vagram", "vagram_unbounded", "vaml"])
def test_attention_of_value_losses_follows_squared_slope_times_variance(
    name,
):
    batch = make_batch()
    actual = attention_of(name, batch)
    assert actual[2] == 0.0  # the third dimension has no slope
    assert_shares(actual, SLOPE**2 * variances(batch))


def test_attention_of_vagram_averages_over_rows_and_values():
    batch = make_batch()
    sine, cosine = np.sin(batch.next_obs[:, 0]), np.cos(batch.next_obs[:, 0])
    square = (2.0 * batch.next_obs) ** 2
    square[:, 0] += (cosine * batch.next_obs[:, 1]) ** 2
    square[:, 1] += sine**2
    actual = attention_of("vagram", batch, curved)
    assert_shares(actual, square.mean(axis=0) * variances(batch))


def test_attention_of_mle_is_proportional_to_precision_times_variance():
    batch, params = make_batch(), make_member(gaussian=True)
    log_var = dynamics.predict(params, batch.obs, batch.action).log_var
    precision = np.mean(np.exp(-log_var[:, :OBS_DIM]), axis=0)
    actual = attention_of("mle", batch, params=params)
    assert_shares(actual, precision * variances(batch))


def test_attention_of_a_constant_value_is_zero():
    actual = attention_of("vagram", make_batch(), lambda state: 0.0 * state[0])
    np.testing.assert_array_equal(actual, np.zeros(OBS_DIM))


def test_errors_on_new_equal_numpy():
    config = dynamics.DynamicsConfig(hidden=(), num_members=2, num_elites=1)
    params = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=OBS_DIM, action_dim=1, config=config
    )
    batch = make_batch()
    batch = batch.replace(terminated=np.arange(ROWS) % 3 == 0)
    where = np.arange(ROWS) < 10

    def above(obs, action, next_obs):
        return next_obs[0] > 0.0

    actual = diagnostics.errors_on_new(params, batch, where, linear, above)
    next_obs, reward, _ = dynamics.predict(params, batch.obs, batch.action)
    next_obs, reward = next_obs[:, :10], reward[:, :10]
    batch = jax.tree.map(lambda x: np.asarray(x)[:10], batch)
    ends, real = next_obs[..., 0] > 0.0, batch.terminated
    values, imagined = batch.next_obs @ SLOPE, next_obs @ SLOPE
    change = np.var(batch.next_obs - batch.obs, axis=0)
    square = np.mean((next_obs - batch.next_obs) ** 2, axis=(0, 1))
    expected = {
        "model/new_error_dim": np.sqrt(square / np.where(change > 0, change, 1.0)),
        "model/new_reward": np.sqrt(np.mean((reward - batch.reward) ** 2))
        / np.std(batch.reward),
        "model/new_value": np.sqrt(np.mean((imagined - values) ** 2)) / np.std(values),
        "model/new_missed": 1.0 - np.mean(ends[:, real]),
        "model/new_false_alarms": np.mean(ends[:, ~real]),
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)
