"""Fitting the ensemble to the real data: epochs, hold-out, patience, elite choice.

Comes in: the model, the replay buffer, a loss and a frozen value function. Goes out:
the model with the best parameters that each member had, and its elites. Everything is
one `while_loop`, so that under `vmap` each seed stops by itself: a finished seed's
state is frozen while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import dynamics
from vagram_jax.config import ConfigError, leaf, static
from vagram_jax.dynamics import DynamicsConfig, DynamicsParams
from vagram_jax.losses import ModelLoss
from vagram_jax.replay import ReplayState
from vagram_jax.types import Metrics, Prediction, Transition, ValueFn

# Rows of the hold-out set that `attention` differentiates the loss at.
_ATTENTION_ROWS = 256


@struct.dataclass(kw_only=True)
class FitConfig:
    """How a model is fitted. Defaults are MBPO's where it has any (Janner et al. 2019).

    Attributes:
      learning_rate: of Adam.
      weight_decay: of AdamW, decoupled.
      batch_size: rows of a minibatch, for each member.
      bootstrap: each member sees its own resample of the training rows, drawn once per
        fit; otherwise all see the same rows.
      holdout: share of the rows that no member trains on; 0 scores on training rows.
      max_holdout: the most rows that are held out.
      patience: stop when no member has improved for so many epochs.
      min_improvement: what counts as improved, relative to the member's best score.
      max_epochs: stop then at the latest.
    """

    learning_rate: float = leaf(1e-3, above=0.0)
    weight_decay: float = leaf(0.0, low=0.0)
    batch_size: int = static(256, low=1)
    bootstrap: bool = static(True)
    holdout: float = static(0.2, low=0.0, high=0.9)
    max_holdout: int = static(5000, low=1)
    patience: int = static(5, low=1)
    min_improvement: float = leaf(0.01, low=0.0)
    max_epochs: int = static(100, low=1)


@struct.dataclass(kw_only=True)
class DynamicsState:
    """What the next fit goes on from.

    Attributes:
      params: the ensemble.
      opt_state: of AdamW, over the network's parameters.
      elites: `[num_elites]` int32, best first.
    """

    params: DynamicsParams
    opt_state: optax.OptState
    elites: jax.Array


class _Data(NamedTuple):
    """The buffer, split for one fit. Row numbers point into `transitions`."""

    transitions: Transition  # [N, ...]
    weights: jax.Array | None  # [N, ...]
    train_rows: jax.Array  # [E, N], the first num_train of each member count
    num_train: jax.Array  # []
    score_rows: jax.Array  # [M], the first num_score count
    num_score: jax.Array  # []


class _Problem(NamedTuple):
    """What is minimised on what. Both functions see one member's network and batch."""

    data: _Data
    loss: Callable[[dict, tuple], jax.Array]  # what hold-out scores are
    objective: Callable[[dict, tuple], jax.Array]  # the loss and its regulariser


class _Progress(NamedTuple):
    """The carry of the epochs."""

    network: dict  # [E, ...]
    opt_state: optax.OptState
    best_network: dict  # [E, ...]
    best_score: jax.Array  # [E]
    train_loss: jax.Array  # [E], mean over the last epoch
    epoch: jax.Array  # []
    epochs_since_improved: jax.Array  # []


def init(
    key: jax.Array,
    *,
    obs_dim: int,
    action_dim: int,
    dynamics_config: DynamicsConfig,
    config: FitConfig,
) -> DynamicsState:
    """A new model that was not fitted yet.

    Args:
      key: used once.
      obs_dim: size of an observation.
      action_dim: size of an action.
      dynamics_config: size and kind of the ensemble.
      config: how it will be fitted.

    Returns:
      The model; its elites are the first members.
    """
    params = dynamics.init_dynamics(
        key, obs_dim=obs_dim, action_dim=action_dim, config=dynamics_config
    )
    return DynamicsState(
        params=params,
        opt_state=_optimizer(config).init(params.network),
        elites=jnp.arange(dynamics_config.num_elites, dtype=jnp.int32),
    )


def fit(
    key: jax.Array,
    state: DynamicsState,
    data: ReplayState,
    value_fn: ValueFn,
    *,
    loss: ModelLoss,
    config: FitConfig = FitConfig(),
) -> tuple[DynamicsState, Metrics]:
    """Trains until no member improves, and keeps the best parameters of each member.

    Args:
      key: used once.
      state: the model to go on from.
      data: at least two transitions.
      value_fn: one state to a scalar or to `[K]`; frozen for the whole fit.
      loss: what to minimise, from `losses.get` or `losses.bind`.
      config: how to fit.

    Returns:
      The fitted model, and metrics: `model/epochs`; `model/train_loss` and
      `model/holdout_loss`, `[E]`; `model/error_dim`, `[obs_dim]`, the members' root
      mean squared hold-out error in standard deviations of the change;
      `model/attention_dim`, `[obs_dim]`, see `attention`; and, for a loss with weights,
      `model/weightless`, the share of rows at which the value function is flat.
    """
    key_split, key_epochs = jax.random.split(key)
    valid = jnp.arange(data.capacity) < data.size
    params = dynamics.fit_normalizer(state.params, data.data, valid)
    weights = None
    if loss.prepare is not None:
        weights = loss.prepare(data.data, value_fn, where=valid)
    rows = _split(key_split, data, weights, params.config.num_members, config)
    problem = _problem(params, rows, value_fn, loss)
    last = jax.lax.while_loop(
        lambda carry: _goes_on(carry, config),
        lambda carry: _epoch(key_epochs, carry, problem, config),
        _start(problem, params.network, state.opt_state),
    )
    params = params.replace(network=last.best_network)
    new_state = DynamicsState(
        params=params,
        # A member that diverged goes on from its best parameters; its moments are lost.
        opt_state=jax.tree.map(
            lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), last.opt_state
        ),
        elites=dynamics.elites_of(last.best_score, params.config.num_elites),
    )
    metrics = {
        "model/epochs": last.epoch,
        "model/train_loss": last.train_loss,
        "model/holdout_loss": last.best_score,
    }
    metrics |= _weightless(weights if loss.prepares_weights else None, valid)
    return new_state, metrics | _diagnose(
        params, value_fn, loss, rows, new_state.elites[0]
    )


def train_step(
    state: DynamicsState,
    batch: Transition,
    value_fn: ValueFn,
    weights: jax.Array | None = None,
    *,
    loss: ModelLoss,
    config: FitConfig = FitConfig(),
) -> tuple[DynamicsState, jax.Array]:
    """One step of every member on a batch of its own: what `fit` repeats.

    Args:
      state: the model.
      batch: `[E, B, ...]` transitions.
      value_fn: one state to a scalar or to `[K]`.
      weights: `[E, B, ...]`, what the loss prepared for these rows, if it prepares any.
      loss: what to minimise.
      config: how to fit.

    Returns:
      The model after the step, with the same elites, and the members' losses `[E]`.
    """
    problem = _problem(state.params, None, value_fn, loss)
    network, opt_state, losses = _descend(
        problem.objective,
        state.params.network,
        state.opt_state,
        (batch, weights),
        config,
    )
    params = state.params.replace(network=network)
    return state.replace(params=params, opt_state=opt_state), losses


def attention(
    params: DynamicsParams,
    batch: Transition,
    value_fn: ValueFn,
    weights: jax.Array | None = None,
    *,
    loss: ModelLoss,
) -> jax.Array:
    """Which state dimensions a loss attends to, at a model's own predictions.

        a_d = mean_b |d^2 L_b / d(s_hat_bd)^2|  *  Var_b(s'_bd - s_bd)

    the curvature of the loss in each predicted dimension, times how much there is to
    predict: what a model that predicts no change loses by each dimension. It is defined
    for every loss, also for those without weights; one without curvature, as `value_l1`
    is, has zeros.

    Args:
      params: a single model.
      batch: `[B, ...]` transitions.
      value_fn: one state to a scalar or to `[K]`.
      weights: `[B, ...]`, what the loss prepared for these rows.
      loss: the loss.

    Returns:
      `[obs_dim]`, each dimension's share; they sum to one, or are all zero.
    """

    def sample_loss(next_obs, rest, transition, weights):
        return _call(
            loss,
            Prediction(next_obs[None], *jax.tree.map(lambda x: x[None], rest)),
            jax.tree.map(lambda x: x[None], (transition, weights)),
            value_fn,
            predict=lambda prediction, obs, action: prediction,
        )

    next_obs, *rest = dynamics.predict(params, batch.obs, batch.action)
    curvature = jax.vmap(lambda *row: jnp.diagonal(jax.hessian(sample_loss)(*row)))(
        next_obs, tuple(rest), batch, weights
    )
    change = jnp.var(batch.next_obs - batch.obs, axis=0)
    share = jnp.mean(jnp.abs(curvature), axis=0) * change
    return share / jnp.where(jnp.sum(share) > 0.0, jnp.sum(share), 1.0)


def _call(loss: ModelLoss, params, batch_and_weights, value_fn, predict) -> jax.Array:
    """The loss, with its prepared weights if it has any."""
    batch, weights = batch_and_weights
    prepared = {} if weights is None else {"prepared": weights}
    value = loss.fn(params, batch, value_fn, predict=predict, **prepared)
    if jnp.shape(value) != ():
        raise ConfigError(
            f"loss {loss.name!r}: returned the shape {jnp.shape(value)}; a scalar is "
            "accepted; take the mean over the batch"
        )
    return value


def _problem(params: DynamicsParams, data: _Data, value_fn, loss) -> _Problem:
    def member_loss(network, batch_and_weights):
        member = params.replace(network=network)
        return _call(loss, member, batch_and_weights, value_fn, dynamics.predict)

    def objective(network, batch_and_weights):
        penalty = dynamics.bounds_penalty(network, config=params.config)
        return member_loss(network, batch_and_weights) + penalty

    return _Problem(data, member_loss, objective)


def _split(key, data: ReplayState, weights, num_members: int, config: FitConfig):
    """A random hold-out set and each member's training rows, all of fixed shape."""
    key_order, key_bootstrap = jax.random.split(key)
    capacity, size = data.capacity, data.size
    order = _shuffled(key_order, capacity, size)
    if config.holdout == 0.0:
        max_score = min(config.max_holdout, capacity)
        num_score, num_held = jnp.minimum(size, max_score), 0
    else:
        share = max(1, int(capacity * config.holdout))
        max_score = min(config.max_holdout, share)
        wanted = (size * config.holdout).astype(jnp.int32)
        num_score = num_held = jnp.clip(wanted, 1, max_score)
    num_train = size - num_held
    train = order[(num_held + jnp.arange(capacity)) % capacity]
    if config.bootstrap:
        picks = jax.random.randint(
            key_bootstrap, (num_members, capacity), 0, jnp.maximum(num_train, 1)
        )
        train_rows = train[picks]
    else:
        train_rows = jnp.broadcast_to(train, (num_members, capacity))
    return _Data(
        data.data, weights, train_rows, num_train, order[:max_score], num_score
    )


def _shuffled(key, capacity: int, count) -> jax.Array:
    """A permutation of `arange(capacity)` that has a random one of `count` in front."""
    rank = jnp.where(
        jnp.arange(capacity) < count, jax.random.uniform(key, (capacity,)), jnp.inf
    )
    return jnp.argsort(rank)


def _start(problem: _Problem, network, opt_state) -> _Progress:
    score = _scores(problem, network)
    return _Progress(
        network=network,
        opt_state=opt_state,
        best_network=network,
        best_score=score,
        train_loss=jnp.full_like(score, jnp.nan),
        epoch=jnp.int32(0),
        epochs_since_improved=jnp.int32(0),
    )


def _goes_on(carry: _Progress, config: FitConfig) -> jax.Array:
    patient = carry.epochs_since_improved < config.patience
    return patient & (carry.epoch < config.max_epochs)


def _epoch(key, carry: _Progress, problem: _Problem, config: FitConfig) -> _Progress:
    """One pass over the training rows, then the hold-out scores."""
    network, opt_state, train_loss = _pass(
        jax.random.fold_in(key, carry.epoch), carry, problem, config
    )
    score = _scores(problem, network)
    best = carry.best_score
    # A score that isn't finite is no improvement on any, and any is one on it.
    margin = config.min_improvement * jnp.abs(best)
    improved = jnp.isfinite(score) & ((score < best - margin) | ~jnp.isfinite(best))
    return _Progress(
        network=network,
        opt_state=opt_state,
        best_network=_where_member(improved, network, carry.best_network),
        best_score=jnp.where(improved, score, best),
        train_loss=train_loss,
        epoch=carry.epoch + 1,
        epochs_since_improved=jnp.where(
            jnp.any(improved), 0, carry.epochs_since_improved + 1
        ),
    )


def _pass(key, carry: _Progress, problem: _Problem, config: FitConfig):
    """Minibatch steps over all training rows in random order; the last wraps around."""
    data = problem.data
    order = _shuffled(key, data.train_rows.shape[1], data.num_train)
    num_batches = -(-data.num_train // config.batch_size)

    def step(i, inner):
        network, opt_state, total = inner
        positions = i * config.batch_size + jnp.arange(config.batch_size)
        rows = data.train_rows[:, order[positions % data.num_train]]  # [E, B]
        batch = jax.tree.map(lambda x: x[rows], (data.transitions, data.weights))
        network, opt_state, losses = _descend(
            problem.objective, network, opt_state, batch, config
        )
        return network, opt_state, total + losses

    total = jnp.zeros_like(carry.train_loss)
    network, opt_state, total = jax.lax.fori_loop(
        0, num_batches, step, (carry.network, carry.opt_state, total)
    )
    return network, opt_state, total / num_batches


def _descend(objective, network, opt_state, batch_and_weights, config: FitConfig):
    """One step of every member: network, optimiser's state and losses `[E]`."""
    losses, gradient = jax.vmap(jax.value_and_grad(objective))(
        network, batch_and_weights
    )
    updates, opt_state = _optimizer(config).update(gradient, opt_state, network)
    return optax.apply_updates(network, updates), opt_state, losses


def _scores(problem: _Problem, network: dict) -> jax.Array:
    """The mean hold-out loss of each member, `[E]`."""
    data, rows = problem.data, problem.data.score_rows
    batch = jax.tree.map(lambda x: x[rows, None], (data.transitions, data.weights))
    # Each row is a batch of one, so that rows that aren't there can be left out.
    errors = jax.vmap(jax.vmap(problem.loss, in_axes=(None, 0)), in_axes=(0, None))(
        network, batch
    )  # [E, M]
    return jnp.mean(errors, axis=1, where=jnp.arange(rows.size) < data.num_score)


def _diagnose(params, value_fn, loss: ModelLoss, split: _Data, best) -> Metrics:
    """Errors per dimension and attention, on hold-out rows."""
    count = min(_ATTENTION_ROWS, split.score_rows.size)
    # Fewer rows than that are repeated; errors are counted once.
    rows = split.score_rows[jnp.arange(count) % split.num_score]
    once = (jnp.arange(count) < split.num_score)[:, None]
    batch, weights = jax.tree.map(lambda x: x[rows], (split.transitions, split.weights))
    prediction = dynamics.predict(params, batch.obs, batch.action)
    square = jnp.square(prediction.next_obs - batch.next_obs)
    square = jnp.mean(square, axis=(0, 1), where=once)
    change = jnp.var(batch.next_obs - batch.obs, axis=0, where=once)
    member = params.replace(network=jax.tree.map(lambda x: x[best], params.network))
    return {
        "model/error_dim": jnp.sqrt(square / jnp.where(change > 0.0, change, 1.0)),
        "model/attention_dim": attention(member, batch, value_fn, weights, loss=loss),
    }


def _weightless(weights: jax.Array | None, valid: jax.Array) -> Metrics:
    """The share of rows without any weight, for a loss that has weights."""
    if weights is None:
        return {}
    flat = jnp.all(weights.reshape(valid.size, -1) == 0.0, axis=1)
    return {"model/weightless": jnp.mean(flat, where=valid)}


def _where_member(mask: jax.Array, new, old):
    """Leaf by leaf the members of `new` where `mask [E]` says so, else of `old`."""
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
    )


def _optimizer(config: FitConfig) -> optax.GradientTransformation:
    def decays(network):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key == "kernel", network
        )

    return optax.adamw(
        config.learning_rate, weight_decay=config.weight_decay, mask=decays
    )
