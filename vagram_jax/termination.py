"""Termination that is learned, for environments that don't say which steps end.

Comes in: real transitions with their flag `terminated`. Goes out: a `TerminationFn` for
imagination, from a classifier of whole steps. Terminations are rare, so minibatches
have as many rows of either kind; what the network learns from those is a ratio of
likelihoods, to which `log_odds` adds how often steps did terminate.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import dynamics, networks, replay
from vagram_jax.config import leaf, static
from vagram_jax.replay import ReplayState
from vagram_jax.types import Metrics, TerminationFn, Transition

# The most new rows that answers are judged by.
_JUDGED_ROWS = 2048


@struct.dataclass(kw_only=True)
class TerminationConfig:
    """How termination is learned, where `imagine.termination` says that it is.

    Attributes:
      hidden: widths of the hidden layers.
      learning_rate: of Adam.
      batch_size: rows of each kind in a minibatch: so many that terminated, and so
        many that did not.
      steps_per_fit: minibatches after each epoch's fit of the model.
    """

    hidden: tuple[int, ...] = static((64, 64), low=1)
    learning_rate: float = leaf(1e-3, above=0.0)
    batch_size: int = static(128, low=1)
    steps_per_fit: int = static(500, low=1)


@struct.dataclass(kw_only=True)
class TerminationState:
    """What the next fit goes on from, and all that an answer depends on.

    Attributes:
      network: parameters of the network.
      opt_state: of Adam.
      mean: `[2 obs_dim + action_dim]`, of observation, action and successor.
      std: `[2 obs_dim + action_dim]`.
      counts: `[2]` int32, rows at the last fit that terminated, and that did not.
      seen_to: int32 scalar, the row that the next transition was to go to then.
    """

    network: dict
    opt_state: optax.OptState
    mean: jax.Array  # [2 obs_dim + action_dim]
    std: jax.Array  # [2 obs_dim + action_dim]
    counts: jax.Array  # [2]
    seen_to: jax.Array  # []


def init(
    key: jax.Array, *, obs_dim: int, action_dim: int, config: TerminationConfig
) -> TerminationState:
    """A new state, which takes no step for a termination.

    Args:
      key: used once.
      obs_dim: size of an observation.
      action_dim: size of an action.
      config: how termination is learned.

    Returns:
      The state.
    """
    in_dim = 2 * obs_dim + action_dim
    network = _module(config).init(key, jnp.zeros(in_dim))
    return TerminationState(
        network=network,
        opt_state=optax.adam(config.learning_rate).init(network),
        mean=jnp.zeros(in_dim),
        std=jnp.ones(in_dim),
        counts=jnp.zeros(2, jnp.int32),
        seen_to=jnp.int32(0),
    )


def fit(
    key: jax.Array,
    state: TerminationState,
    data: ReplayState,
    *,
    config: TerminationConfig,
) -> tuple[TerminationState, Metrics]:
    """Trains on real transitions for `config.steps_per_fit` minibatches.

    While all rows are of one kind, nothing is trained: `log_odds` knows the answer.

    Args:
      key: used once.
      state: what to go on from.
      data: real transitions.
      config: how termination is learned.

    Returns:
      The state, and metrics. `model/termination_loss` is the mean over the minibatches.
      Two others are errors of the previous state on the steps since the last fit, which
      The others are errors of the previous state on the steps since the last fit, which
      misses, and `model/termination_false_alarms`, the fraction of other steps that it
      takes for terminations. Each is NaN if there is nothing to take the mean of.
    """
    valid = jnp.arange(data.capacity) < data.size
    kinds = jnp.stack([valid & data.data.terminated, valid & ~data.data.terminated])
    counts = jnp.sum(kinds, axis=1, dtype=jnp.int32)
    rows = jax.vmap(partial(jnp.flatnonzero, size=data.capacity))(kinds)  # [2, N]
    mean, std = _moments(data.data, valid)

    def step(i, carry):
        state, total = carry
        positions = jax.random.randint(
            jax.random.fold_in(key, i),
            (2, config.batch_size),
            0,
            jnp.maximum(counts, 1)[:, None],
        )
        picks = jnp.take_along_axis(rows, positions, axis=1)  # [2, B]
        batch = replay.take(data.data, picks)
        state, loss = train_step(state, batch, config=config)
        return state, total + loss

    metrics = _judge(state, data, config)
    state = state.replace(mean=mean, std=std, counts=counts, seen_to=data.insert_at)
    num_steps = jnp.where(jnp.all(counts > 0), config.steps_per_fit, 0)
    state, total = jax.lax.fori_loop(0, num_steps, step, (state, jnp.zeros(())))
    return state, metrics | {"model/termination_loss": total / num_steps}


def train_step(
    state: TerminationState, batch: Transition, *, config: TerminationConfig
) -> tuple[TerminationState, jax.Array]:
    """One step on one minibatch: what `fit` repeats.

    Args:
      state: the state.
      batch: `[..., ]` transitions, of which half terminated.
      config: how termination is learned.

    Returns:
      The state after the step, and the loss before it.
    """
    loss, gradient = jax.value_and_grad(cross_entropy)(
        state.network, state, batch, config=config
    )
    updates, opt_state = optax.adam(config.learning_rate).update(
        gradient, state.opt_state
    )
    network = optax.apply_updates(state.network, updates)
    return state.replace(network=network, opt_state=opt_state), loss


def cross_entropy(
    network: dict,
    state: TerminationState,
    batch: Transition,
    *,
    config: TerminationConfig,
) -> jax.Array:
    """The binary cross-entropy of the flags, as if half of all steps terminated.

        L = mean_b log(1 + exp(-y_b f(s_b, a_b, s'_b)))    y = 1 if terminated, else -1

    Args:
      network: what to differentiate in.
      state: for its mean and standard deviation.
      batch: `[..., ]` transitions.
      config: how termination is learned.

    Returns:
      A scalar, in nats.
    """
    step = (batch.obs, batch.action, batch.next_obs)
    ratio = _log_ratio(network, state, *step, config=config)
    return jnp.mean(jax.nn.softplus(jnp.where(batch.terminated, -ratio, ratio)))


def log_odds(
    state: TerminationState,
    obs: jax.Array,
    action: jax.Array,
    next_obs: jax.Array,
    *,
    config: TerminationConfig,
) -> jax.Array:
    """The logarithm of the odds that a step has terminated.

        log P(y | x) / P(not y | x) = log p(x | y) / p(x | not y) + log N_y / N_not_y

    The first term is what a network learns from minibatches with as many rows of either
    kind, the second one corrects for how many there are.

    Args:
      state: the state.
      obs: `[..., obs_dim]`, in the units of the data.
      action: `[..., action_dim]`.
      next_obs: `[..., obs_dim]`.
      config: how termination is learned.

    Returns:
      `[...]`, minus infinity while no row has terminated, infinity while all have.
    """
    terminated, others = state.counts
    prior = jnp.where(terminated > 0, jnp.log(terminated) - jnp.log(others), -jnp.inf)
    ratio = _log_ratio(state.network, state, obs, action, next_obs, config=config)
    return prior + ratio


def termination_fn(
    state: TerminationState, *, config: TerminationConfig
) -> TerminationFn:
    """What was learned, as a function that `jit` and `vmap` take as data.

    Args:
      state: the state.
      config: how termination is learned.

    Returns:
      One step, `[obs_dim], [action_dim], [obs_dim]`, to a bool scalar: whether it is
      more likely that it has terminated than not, or there is NaN in it.
    """
    return jax.tree_util.Partial(_has_terminated, state, config=config)


def _has_terminated(state, obs, action, next_obs, *, config) -> jax.Array:
    is_nan = jnp.isnan(jnp.concatenate([obs, action, next_obs]))
    odds = log_odds(state, obs, action, next_obs, config=config)
    return jnp.any(is_nan) | (odds > 0.0)


def _module(config: TerminationConfig) -> networks.MLP:
    return networks.MLP(hidden=config.hidden, out_dim=1)


def _log_ratio(network, state, obs, action, next_obs, *, config) -> jax.Array:
    inputs = jnp.concatenate([obs, action, next_obs], axis=-1)
    inputs = (inputs - state.mean) / state.std
    return jnp.squeeze(_module(config).apply(network, inputs), axis=-1)


def _moments(data: Transition, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of what the network sees."""
    parts = [
        dynamics.moments(part, valid) for part in (data.obs, data.action, data.next_obs)
    ]
    means, stds = zip(*parts, strict=True)
    return jnp.concatenate(means), jnp.concatenate(stds)


def _judge(state: TerminationState, data: ReplayState, config) -> Metrics:
    """Shares of wrong answers on the rows since the last fit."""
    age = jnp.arange(min(_JUDGED_ROWS, data.capacity))
    batch = replay.take(data.data, (data.insert_at - 1 - age) % data.capacity)
    is_new = age < (data.insert_at - state.seen_to) % data.capacity
    odds = log_odds(state, batch.obs, batch.action, batch.next_obs, config=config)
    return {
        "model/termination_missed": jnp.mean(
            odds <= 0.0, where=is_new & batch.terminated
        ),
        "model/termination_false_alarms": jnp.mean(
            odds > 0.0, where=is_new & ~batch.terminated
        ),
    }
