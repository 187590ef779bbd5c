"""Builders for the tests of learned termination.

All tests share a buffer's shape, and most of them one config, so that few programs are
compiled. Rows that were never written are NaN and flagged, so that using one shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import replay, termination
from vagram_jax.types import Transition

CAPACITY, SIZE, OBS_DIM, ACTION_DIM = 2000, 1500, 3, 1
IN_DIM = 2 * OBS_DIM + ACTION_DIM
CONFIG = termination.TerminationConfig(
    hidden=(32,), learning_rate=3e-3, batch_size=64, steps_per_fit=1000
)


def steps_of(seed, size=CAPACITY):
    """Steps without flags: `(obs, action, next_obs)`, in units far from one."""
    rng = np.random.default_rng(seed)
    obs = 50.0 + 10.0 * rng.normal(size=(size, OBS_DIM))
    action = rng.uniform(-1.0, 1.0, (size, ACTION_DIM))
    next_obs = obs + 5.0 * action + 3.0 * rng.normal(size=obs.shape)
    return [np.float32(x) for x in (obs, action, next_obs)]


def buffer_of(steps, terminated, size=SIZE):
    """A buffer whose first `size` rows are the steps given."""
    rows = np.arange(CAPACITY) < size
    obs, action, next_obs = (
        np.where(rows[:, None], x, np.float32("nan")) for x in steps
    )
    return replay.ReplayState(
        data=Transition(
            obs=obs,
            action=action,
            reward=np.zeros(CAPACITY, np.float32),
            next_obs=next_obs,
            terminated=terminated | ~rows,
            truncated=~rows,
        ),
        insert_at=jnp.int32(size % CAPACITY),
        size=jnp.int32(size),
    )


def falls(steps):
    """The rule of the tests: about one step in nine ends below."""
    return steps[2][:, 0] < 37.0


def falling(seed=0, size=SIZE):
    steps = steps_of(seed)
    return buffer_of(steps, falls(steps), size)


@functools.partial(jax.jit, static_argnames="hidden")
def _init(key, hidden):
    return termination.init(
        key,
        obs_dim=OBS_DIM,
        action_dim=ACTION_DIM,
        config=CONFIG.replace(hidden=hidden),
    )


def init(seed=0, hidden=CONFIG.hidden):
    return _init(jax.random.key(seed), hidden)


def answering(kernel, limit, counts=(1, 1), **fields):
    """A state whose ratio is `limit - inputs @ kernel`, in the units of the data."""
    network = jax.tree.map(np.zeros_like, init().network)
    layers = network["params"]
    # The positive part of that less its negative part.
    for unit, sign in enumerate((1.0, -1.0)):
        layers["Dense_0"]["kernel"][:, unit] = -sign * kernel
        layers["Dense_0"]["bias"][unit] = sign * limit
        layers["Dense_1"]["kernel"][unit] = sign
    return init().replace(network=network, counts=jnp.int32(counts), **fields)


def below(limit, **fields):
    """A state that takes successors below a limit for terminated ones."""
    return answering(np.eye(IN_DIM)[OBS_DIM + ACTION_DIM], limit, **fields)


fit = jax.jit(termination.fit)
log_odds = jax.jit(termination.log_odds)


@jax.jit
def answers(state, steps, algorithm=CONFIG):
    ends = termination.termination_fn(state, config=algorithm)
    return jax.vmap(ends)(*steps)


@functools.cache
def fitted(seed=0):
    return fit(jax.random.key(seed), init(seed), falling(seed), config=CONFIG)
