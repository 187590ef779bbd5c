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


def drifting(biases):
    """Members that predict a constant change of the state, `[E, obs_dim]`."""
    count, size = biases.shape
    config = dynamics.DynamicsConfig(
        hidden=(), num_members=count, num_elites=count, head="deterministic"
    )
    params = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=size, action_dim=1, config=config
    )
    network = jax.tree.map(jnp.zeros_like, params.network)
    rewards = np.zeros((count, 1))
    layer = network["params"]["mlp"]["Dense_0"]
    layer["bias"] = jnp.asarray(np.concatenate([biases, rewards], axis=1))
    return params.replace(network=network)


LENGTHS = (5, 2)


def played_episodes():
    """Two random walks of five and of two steps, and their mask."""
    rng = np.random.default_rng(2)
    walks = np.cumsum(rng.normal(size=(2, 6, 3)), axis=1)
    mask = np.arange(5) < np.array(LENGTHS)[:, None]
    walks[1, 3:] = np.nan  # what follows the end of an episode counts nowhere
    rows = Transition(
        obs=np.nan_to_num(walks[:, :-1]),
        action=rng.uniform(-1, 1, (2, 5, 1)),
        reward=np.zeros((2, 5)),
        next_obs=np.nan_to_num(walks[:, 1:], nan=1e9),
    )
    return walks, rows, jnp.asarray(mask)


def test_k_step_errors_equal_a_loop_over_starts():
    walks, rows, mask = played_episodes()
    biases = np.array([[0.5, 0.0, -1.0], [0.1, 0.2, 1.0]])
    value = np.array([1.0, -2.0, 0.5])
    result = diagnostics.k_step_errors(
        drifting(biases), rows, mask, lambda state: jnp.dot(value, state), horizon=6
    )
    assert result["rows"].tolist() == [7, 5, 3, 2, 1, 0]
    for k in range(1, 6):
        pairs = [
            (walk[start], walk[start + k])
            for walk, length in zip(walks, LENGTHS, strict=True)
            for start in range(length - k + 1)
        ]
        first, last = (np.array(each) for each in zip(*pairs, strict=True))
        predicted = first + k * biases[:, None]  # [E, rows, obs_dim]
        change = (last - first).std(axis=0)
        error = np.sqrt(np.mean((predicted - last) ** 2, axis=(0, 1)))
        spread = predicted.std(axis=0).mean(axis=0)  # the same in every row
        deviation = (last @ value).std()
        off = np.sqrt(np.mean(((predicted - last) @ value) ** 2))
        scale = np.where(change > 0, change, 1.0)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=EXACT)
        close(result["error_dim"][k - 1], error / scale)
        close(result["disagreement_dim"][k - 1], spread / scale)
        close(result["value_error"][k - 1], off / (deviation or 1.0))
    assert np.isnan(result["error_dim"][5]).all()


def test_the_error_of_one_step_is_that_of_the_tables():
    _, rows, mask = played_episodes()
    params = drifting(np.array([[0.5, 0.0, -1.0], [0.1, 0.2, 1.0]]))
    result = diagnostics.k_step_errors(params, rows, mask, jnp.sum, horizon=1)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    expected = diagnostics.error_per_dim(params, flat, mask.reshape(-1, 1))
    np.testing.assert_allclose(result["error_dim"][0], expected, rtol=1e-9)
