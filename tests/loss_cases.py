"""Batches, value functions and a tabular model for the tests of the losses.

The parameters of the table are the predictions themselves, so that a test chooses what
the model predicts, and a gradient is the gradient in the prediction.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from vagram_jax import losses
from vagram_jax.types import Transition

# Central differences in float64: rounding and truncation are each near 1e-10.
DIFFERENCES = 1e-8
# Second differences of fourth order: rounding and truncation are each near 1e-8.
SECOND_DIFFERENCES = 1e-6
# float64 arithmetic in another order.
EXACT = 1e-12


def table(params, obs, action):
    """A model whose parameters are its predictions."""
    del obs, action
    return params["next_obs"], params["reward"], params["log_var"]


def make_batch(seed=0, **sizes):
    """Random transitions of NumPy arrays."""
    return Transition(**oracles.random_batch(seed, **sizes))


def make_case(seed, members=2, leading=(6,), obs_dim=3, **sizes):
    """A batch and predictions for it, as dicts of NumPy arrays."""
    batch = oracles.random_batch(seed, leading=leading, obs_dim=obs_dim, **sizes)
    batch |= oracles.random_extras(seed, leading)
    rng = np.random.default_rng([seed, 1])
    rows = leading if len(leading) == 2 else (members, *leading)
    return batch, {
        "next_obs": batch["next_obs"] + 0.3 * rng.normal(size=(*rows, obs_dim)),
        "reward": batch["reward"] + 0.3 * rng.normal(size=rows),
        "log_var": rng.uniform(-2.0, 1.0, size=(*rows, obs_dim + 1)),
    }


def make_value(seed, **sizes):
    """K tanh networks, as a JAX function and as one for the oracles."""
    params = oracles.random_values(seed, **sizes)

    def value(state):
        hidden = jnp.einsum("khd,d->kh", params["inner"], state) + params["shift"]
        return jnp.sum(params["outer"] * jnp.tanh(hidden), axis=-1)

    return value, functools.partial(oracles.values, params)


def loss_of(name, prediction, batch, value_fn=None, **options):
    return compiled(lambda f: f, name, value_fn, **options)(prediction, batch)


def grad_of(name, prediction, batch, value_fn=None, **options):
    return compiled(jax.grad, name, value_fn, **options)(prediction, batch)


def loss_and_grad(name, prediction, batch, value_fn=None, **options):
    return compiled(jax.value_and_grad, name, value_fn, **options)(prediction, batch)


def compiled(transform, name, value_fn, **options):
    """The loss in one program; without it each operation would compile by itself."""

    def run(prediction, batch):
        rows, fn = Transition(**batch), losses.get(name).fn
        return fn(prediction, rows, value_fn, predict=table, **options)

    return jax.jit(transform(run))


def without_reward(prediction, batch):
    return prediction | {"reward": np.broadcast_to(batch["reward"], (2, 6))}


def moved(prediction, **fields):
    return prediction | fields


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
