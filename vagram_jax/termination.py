"""How imagined rollouts end, and a learned classifier of terminations.

The classifier is for environments without a termination function. It is trained on the
flag `terminated` of real transitions. Terminations are rare, so each minibatch has as
many terminated rows as others. The network therefore learns a likelihood ratio, to
which `log_odds` adds the prior of a termination.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import dynamics, networks, replay
from vagram_jax.config import ConfigError, check_fields, leaf, static
from vagram_jax.envs import base
from vagram_jax.replay import ReplayState
from vagram_jax.types import Metrics, Params, TerminationFn, Transition

# Maximum number of new rows on which the error rates are measured.
_MAX_NEW_ROWS = 2048


@struct.dataclass(kw_only=True)
class TerminationConfig:
    """How the classifier is trained, if `imagine.termination` is "learned".

    Attributes:
      hidden: widths of the hidden layers.
      learning_rate: learning rate of Adam.
      batch_size: number of terminated rows in a minibatch, and of other rows.
      steps_per_fit: minibatches per epoch.
    """

    hidden: tuple[int, ...] = static((64, 64), low=1)
    learning_rate: float = leaf(1e-3, above=0.0)
    batch_size: int = static(128, low=1)
    steps_per_fit: int = static(500, low=1)


@struct.dataclass(kw_only=True)
class TerminationState:
    """Parameters of the classifier, its optimizer state and its normalizer.

    Attributes:
      network: parameters of the network.
      opt_state: state of Adam.
      mean: `[2 obs_dim + action_dim]`, mean of observation, action and successor.
      std: `[2 obs_dim + action_dim]`, their standard deviation.
      counts: `[2]` int32, terminated and other rows at the last fit.
      seen_to: int32 scalar, the buffer's `insert_at` at the last fit.
    """

    network: Params
    opt_state: optax.OptState
    mean: jax.Array  # [2 obs_dim + action_dim]
    std: jax.Array  # [2 obs_dim + action_dim]
    counts: jax.Array  # [2]
    seen_to: jax.Array  # []


def check_way(way: str, env: base.Env, *, has_model: bool) -> str:
    """Returns `imagine.termination` with "auto" resolved, or refuses it.

    Args:
      way: the setting.
      env: the environment.
      has_model: whether there is a model, and so whether anything is imagined.

    Raises:
      ConfigError: the environment shall say what terminates, and can't.
    """
    has_function = getattr(env, "termination", None) is not None
    if way == "auto":
        # Plain SAC imagines nothing; "env" is what its earlier runs recorded.
        return "env" if has_function or not has_model else "learned"
    if way == "env" and has_model and not has_function:
        raise ConfigError(
            f"config: imagine.termination='env'; {base.name_of(env)} has no method "
            "termination(obs, action, next_obs); add one, or set imagine.termination "
            "to auto or learned, or to none if no episode terminates"
        )
    return way


def choose(
    way: str,
    env: base.Env,
    classifier: TerminationState | None,
    *,
    config: TerminationConfig,
) -> TerminationFn:
    """Returns the function that ends imagined rollouts.

    Args:
      way: from `check_way`.
      env: the environment.
      classifier: the classifier if it is learned, else None.
      config: of the classifier.
    """
    if way == "none":
        return lambda obs, action, next_obs: jnp.bool_(False)
    if way == "learned":
        return termination_fn(cast(TerminationState, classifier), config=config)
    return env.termination


def init(
    key: jax.Array, *, obs_dim: int, action_dim: int, config: TerminationConfig
) -> TerminationState:
    """Returns a new classifier, which predicts no termination.

    Raises:
      ConfigError: a value of the config is out of range.
    """
    check_fields(config, prefix="termination.")
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

    Nothing is trained while all rows are of one kind; `log_odds` then needs no network.

    Args:
      key: random key.
      state: the classifier to continue from.
      data: real transitions.
      config: how to train.

    Returns:
      The classifier, and metrics: `model/termination_loss`, the mean over minibatches;
      and error rates of the classifier before the fit on the steps since the last one,
      which it has not seen: `model/termination_missed` (share of the terminated steps
      that it missed) and `model/termination_false_alarms` (share of the other steps
      that it took for terminations). A mean over nothing is NaN.
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

    metrics = _error_rates(state, data, config)
    state = state.replace(mean=mean, std=std, counts=counts, seen_to=data.insert_at)
    num_steps = jnp.where(jnp.all(counts > 0), config.steps_per_fit, 0)
    state, total = jax.lax.fori_loop(0, num_steps, step, (state, jnp.zeros(())))
    return state, metrics | {"model/termination_loss": total / num_steps}


def train_step(
    state: TerminationState, batch: Transition, *, config: TerminationConfig
) -> tuple[TerminationState, jax.Array]:
    """Takes one step on one minibatch; `fit` repeats this step.

    Args:
      state: the classifier.
      batch: `[..., ]` transitions, half of them terminated.
      config: how to train.

    Returns:
      The classifier after the step, and the loss before it.
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
    network: Params,
    state: TerminationState,
    batch: Transition,
    *,
    config: TerminationConfig,
) -> jax.Array:
    """Returns the binary cross-entropy, as if half of all steps terminated.

        L = mean_b log(1 + exp(-y_b f(s_b, a_b, s'_b)))    y = 1 if terminated, else -1

    Args:
      network: parameters to differentiate in.
      state: the classifier, for its mean and standard deviation.
      batch: `[..., ]` transitions.
      config: how to train.

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
    """Returns the logarithm of the odds that a step has terminated.

        log P(y | x) / P(not y | x) = log p(x | y) / p(x | not y) + log N_y / N_not_y

    The network learns the first term from balanced minibatches; the second term is the
    prior.

    Args:
      state: the classifier.
      obs: `[..., obs_dim]`, in the units of the data.
      action: `[..., action_dim]`.
      next_obs: `[..., obs_dim]`.
      config: how it was trained.

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
    """Returns the classifier as a function, a pytree for `jit` and `vmap`.

    It maps one step, `[obs_dim], [action_dim], [obs_dim]`, to a bool scalar: whether a
    termination is more likely than not, or the step contains NaN.
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
    # Flax's type has a second case, the variables of modules that change theirs.
    ratio = cast(jax.Array, _module(config).apply(network, inputs))
    return jnp.squeeze(ratio, axis=-1)


def _moments(data: Transition, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation of the network's inputs."""
    parts = [
        dynamics.moments(part, valid) for part in (data.obs, data.action, data.next_obs)
    ]
    means, stds = zip(*parts, strict=True)
    return jnp.concatenate(means), jnp.concatenate(stds)


def _error_rates(state: TerminationState, data: ReplayState, config) -> Metrics:
    """Returns the shares of wrong predictions on the rows since the last fit."""
    age = jnp.arange(min(_MAX_NEW_ROWS, data.capacity))
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
