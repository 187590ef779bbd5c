"""Builders for the tests of `fit`: small problems that a linear model solves.

The networks have no hidden layer, so that one line of NumPy predicts the same, and all
tests use the same shapes, so that they share a compiled program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import dynamics, fit, losses
from vagram_jax.replay import ReplayState
from vagram_jax.types import Transition

CAPACITY, SIZE, MEMBERS = 80, 64, 3
HELD = SIZE // 4
MODEL = dynamics.DynamicsConfig(hidden=(), num_members=MEMBERS, num_elites=2)
# 48 training rows are three minibatches.
CONFIG = fit.FitConfig(batch_size=16, holdout=0.25, max_epochs=6, patience=3)
# No score is below zero, so none has improved: exactly `patience` epochs.
THREE_EPOCHS = CONFIG.replace(min_improvement=1.0)
# The change of the state and, last, the reward, for `[obs, action]`.
ANSWER = np.float32([[0.5, -0.3, 1.0], [-0.2, 0.1, 0.0], [0.3, 0.4, -1.0]])


def make_data(seed=0, size=SIZE, spread=0.0, unwritten=np.nan, **fields):
    """A buffer of transitions of a linear system; `spread` is the noise's."""
    rng = np.random.default_rng(seed)
    obs, action = rng.normal(size=(CAPACITY, 2)), rng.uniform(-1, 1, (CAPACITY, 1))
    change = np.concatenate([obs, action], 1) @ ANSWER
    change = change + spread * rng.normal(size=change.shape)
    rows = {
        "obs": obs,
        "action": action,
        "reward": change[:, 2],
        "next_obs": obs + change[:, :2],
    }
    for name, value in rows.items():
        value[size:] = unwritten
        rows[name] = np.float32(value)
    flags = {name: np.zeros(CAPACITY, bool) for name in ("terminated", "truncated")}
    return ReplayState(
        data=Transition(**(rows | flags | fields)),
        insert_at=jnp.int32(size % CAPACITY),
        size=jnp.int32(size),
    )


def with_targets(data, rows, value):
    """The buffer with other successors and rewards in some rows."""
    fields = {}
    for name in ("next_obs", "reward"):
        fields[name] = np.array(getattr(data.data, name))
        fields[name][rows] = value
    return data.replace(data=data.data.replace(**fields))


def two_values(state):
    return jnp.stack([jnp.tanh(state[0] + 0.5 * state[1]), 0.5 * state[1] ** 2])


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _make_state(key, model, config):
    return fit.init(key, obs_dim=2, action_dim=1, dynamics_config=model, config=config)


@functools.cache
def make_state(seed=0, model=MODEL):
    return _make_state(jax.random.key(seed), model, fit.FitConfig())


def run_fit(key, state, data, config, loss):
    loss = losses.bind(loss, discount=0.9)  # only muzero reads the discount
    return fit.fit(key, state, data, two_values, loss=loss, config=config)


solo = jax.jit(run_fit, static_argnames="loss")
seeds = jax.jit(jax.vmap(run_fit, in_axes=(0, 0, 0, None, None)), static_argnums=4)


def run(state=None, data=None, config=CONFIG, loss="mse", seed=0):
    """A fit on its own."""
    loss = losses.get(loss) if isinstance(loss, str) else loss
    state = make_state() if state is None else state
    data = make_data() if data is None else data
    return solo(jax.random.key(seed), state, data, config, loss)


@functools.partial(jax.jit, static_argnames="config_key")
def _split(key, data, config_key):
    config = CONFIG.replace(**dict(config_key))
    return fit._split(jax.random.split(key)[0], data, None, MEMBERS, config)


def split(data, seed=0, **options):
    """The rows that a fit with this key holds out, and those of each member."""
    actual = _split(jax.random.key(seed), data, tuple(options.items()))
    held = np.asarray(actual.score_rows)[: int(actual.num_score)]
    return held, np.asarray(actual.train_rows)[:, : int(actual.num_train)]


def member(tree, index):
    """One member of everything that has a member axis."""
    return jax.tree.map(lambda x: x[index] if jnp.ndim(x) else x, tree)


def squared_errors(network, params, data, rows):
    """What the mse loss is for each row, by NumPy in float64, for one member."""
    batch = jax.tree.map(lambda x: np.float64(x)[rows], data.data)
    layer = jax.tree.map(np.float64, network["params"]["mlp"]["Dense_0"])
    inputs = np.concatenate([batch.obs, batch.action], axis=-1)
    scaled = (inputs - params.normalizer.input_mean) / params.normalizer.input_std
    actual = scaled @ layer["kernel"] + layer["bias"]
    expected = np.concatenate([batch.next_obs - batch.obs, batch.reward[:, None]], -1)
    return np.sum((actual - expected) ** 2, axis=-1)


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
