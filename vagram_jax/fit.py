"""Fitting the ensemble to real data: epochs, hold-out, patience, choice of elites.

All epochs are one `while_loop`, so that under `vmap` each seed stops on its own: the
state of a finished seed stays frozen while the others continue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vagram_jax import diagnostics, dynamics, losses
from vagram_jax.config import ConfigError, check_fields, leaf, static
from vagram_jax.dynamics import DynamicsConfig, DynamicsParams
from vagram_jax.losses import GradientConfig, ModelLoss, WeightConfig, value_gradients
from vagram_jax.replay import ReplayState
from vagram_jax.types import Metrics, Params, Transition, ValueFn

_Objective = Callable[[Params, tuple], jax.Array]

# Hold-out rows that the diagnostics use: attention needs second derivatives.
_DIAGNOSTIC_ROWS = 256

# Hold-out rows that are scored at a time: a small buffer has few of them.
_SCORE_ROWS = 250


@struct.dataclass(kw_only=True)
class FitConfig:
    """How a model is fitted. Defaults are MBPO's where it has any (Janner et al. 2019).

    Attributes:
      learning_rate: learning rate of AdamW.
      weight_decay: decoupled weight decay of AdamW.
      batch_size: rows of a minibatch, for each member.
      bootstrap: give each member its own resample of the training rows, drawn once per
        fit; otherwise all members see the same rows.
      holdout: share of the rows that no member trains on, the same rows in every fit;
        with 0 the training rows give the scores.
      max_holdout: maximum number of held-out rows.
      patience: epochs without an improvement of any member after which a fit stops.
      min_improvement: smallest improvement that counts, relative to the member's best
        score. A fit with few `max_steps` should have 0, because it seldom improves a
        member by more, and then returns the member's old parameters.
      max_epochs: maximum number of epochs. An epoch draws as many rows, with
        replacement, as there are to train on.
      max_steps: maximum number of gradient steps, which keeps the cost of a fit from
        growing with the data; the last epoch is cut short. None means no limit.
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
    max_steps: int | None = static(None, low=1)


@struct.dataclass(kw_only=True)
class DynamicsState:
    """The ensemble, its optimizer state and its elites.

    Attributes:
      params: parameters of the ensemble.
      opt_state: state of AdamW for the network's parameters.
      elites: `[num_elites]` int32, the members with the lowest hold-out loss, best
        first.
      was_finite: bool scalar, whether the hold-out loss of any member was finite after
        the last epoch of any fit. If not, the network was never trained.
    """

    params: DynamicsParams
    opt_state: optax.OptState
    elites: jax.Array  # [num_elites]
    was_finite: jax.Array  # []


class _Data(NamedTuple):
    """The replay buffer, split for one fit. Row numbers point into `transitions`."""

    transitions: Transition  # [N, ...]
    prepared: jax.Array | None  # [N, ...], what the loss prepared
    train_rows: jax.Array  # [E, N], of which the first num_train are valid
    num_train: jax.Array  # []
    score_rows: jax.Array  # [M], of which the first num_score are valid
    num_score: jax.Array  # []


class _Problem(NamedTuple):
    """The data, and what is minimized: functions of one member's network and batch."""

    data: _Data
    loss: _Objective  # the hold-out score
    objective: _Objective  # the loss and its regularizer


class _Progress(NamedTuple):
    """The state that one epoch hands to the next."""

    network: Params  # [E, ...]
    opt_state: optax.OptState
    best_network: Params  # [E, ...]
    best_score: jax.Array  # [E]
    last_score: jax.Array  # [E]
    improved: jax.Array  # [E], whether any epoch improved the score
    train_loss: jax.Array  # [E], mean over the last epoch
    epoch: jax.Array  # []
    steps: jax.Array  # []
    epochs_since_improved: jax.Array  # []


def check_loss(
    name: str,
    *,
    dynamics_config: DynamicsConfig,
    gradients: GradientConfig,
    weights: WeightConfig,
    also: tuple[str, ...] = (),
) -> DynamicsConfig:
    """Returns the config of a model with the head that a loss needs.

    Args:
      name: of the loss, as for `losses.get`.
      dynamics_config: size and kind of the ensemble.
      gradients: how value gradients are taken.
      weights: how they become weights.
      also: as for `losses.get`.

    Raises:
      ConfigError: an unknown loss, a head that it can't use, a setting that it doesn't
        read, or a loss that needs what isn't recorded.
    """
    loss = losses.get(name, also=also)
    if loss.reads:
        raise ConfigError(
            f"config: loss={name!r}; it reads batch.{loss.reads[0]}, which training "
            "doesn't record; register a loss with a `prepare` that makes it"
        )
    if loss.gaussian and dynamics_config.head == "deterministic":
        raise ConfigError(
            f"config: dynamics.head='deterministic'; loss={name!r} needs a variance; "
            "set dynamics.head to gaussian or auto"
        )
    for key, value in losses.unread(loss, gradients=gradients, weights=weights).items():
        raise ConfigError(
            f"config: {key}={value}; loss={name!r} doesn't read it; leave it out"
        )
    value_gradients.check(weights)
    if dynamics_config.head != "auto":
        return dynamics_config
    head = "gaussian" if loss.gaussian else "deterministic"
    return dynamics_config.replace(head=head)


def init(
    key: jax.Array,
    *,
    obs_dim: int,
    action_dim: int,
    dynamics_config: DynamicsConfig,
    config: FitConfig,
) -> DynamicsState:
    """Returns a new ensemble, whose elites are the first members.

    Raises:
      ConfigError: a value of a config is out of range.
    """
    check_fields(config, prefix="fit.")
    params = dynamics.init_dynamics(
        key, obs_dim=obs_dim, action_dim=action_dim, config=dynamics_config
    )
    return DynamicsState(
        params=params,
        opt_state=_optimizer(config).init(params.network),
        elites=jnp.arange(dynamics_config.num_elites, dtype=jnp.int32),
        was_finite=jnp.bool_(False),
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
      key: random key.
      state: the ensemble to continue from.
      data: at least two transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`; frozen during the fit.
      loss: the loss, from `losses.get`, with its settings from `losses.bind`.
      config: how to fit.

    Returns:
      The fitted ensemble, and metrics: `model/epochs`, and `model/steps`, the number of
      minibatches; `model/train_loss` and `model/holdout_loss`, `[E]`;
      `model/improved`, the number of members whose score improved, and `model/finite`,
      the number of members whose score after the last epoch is finite;
      `model/error_dim` and `model/attention_dim`, `[obs_dim]`, see `diagnostics`; and,
      for a loss with value-gradient weights, `model/weightless`, the share of rows at
      which the value function is flat.
    """
    key_split, key_epochs = jax.random.split(key)
    valid = jnp.arange(data.capacity) < data.size
    params = dynamics.fit_normalizer(state.params, data.data, valid)
    prepared = None
    if loss.prepare is not None:
        prepared = loss.prepare(data.data, value_fn, where=valid)
    rows = _split(key_split, data, prepared, params.config.num_members, config)
    problem = _Problem(rows, *_objectives(params, value_fn, loss))
    last = jax.lax.while_loop(
        lambda carry: _continues(carry, config),
        lambda carry: _epoch(key_epochs, carry, problem, config),
        _start(problem, params.network, state.opt_state),
    )
    params = params.replace(network=last.best_network)
    new_state = DynamicsState(
        params=params,
        # A member that diverged restarts from its best parameters without its moments.
        opt_state=jax.tree.map(
            lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)), last.opt_state
        ),
        elites=dynamics.elites_of(last.best_score, params.config.num_elites),
        was_finite=state.was_finite | jnp.any(jnp.isfinite(last.last_score)),
    )
    metrics = _summarize(last)
    if prepared is not None and loss.prepares_weights:
        metrics["model/weightless"] = _weightless(prepared, valid)
    return new_state, metrics | _diagnose(
        params, value_fn, loss, rows, new_state.elites[0]
    )


def train_step(
    state: DynamicsState,
    batch: Transition,
    value_fn: ValueFn,
    prepared: jax.Array | None = None,
    *,
    loss: ModelLoss,
    config: FitConfig = FitConfig(),
) -> tuple[DynamicsState, jax.Array]:
    """Takes one step of every member, each on its own batch; `fit` repeats this step.

    Args:
      state: the ensemble.
      batch: `[E, B, ...]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      prepared: `[E, B, ...]`, what the loss prepared for these rows.
      loss: the loss.
      config: how to fit.

    Returns:
      The ensemble with unchanged elites, and the members' losses `[E]`.
    """
    _, objective = _objectives(state.params, value_fn, loss)
    network, opt_state, values = _descend(
        objective, state.params.network, state.opt_state, (batch, prepared), config
    )
    params = state.params.replace(network=network)
    return state.replace(params=params, opt_state=opt_state), values


def _objectives(
    params: DynamicsParams, value_fn: ValueFn, loss: ModelLoss
) -> tuple[_Objective, _Objective]:
    """Returns the hold-out score of a member, and what its training minimizes."""

    def member_loss(network, batch_and_prepared):
        member = params.replace(network=network)
        batch, prepared = batch_and_prepared
        return loss(
            member, batch, value_fn, prepared=prepared, predict=dynamics.predict
        )

    def objective(network, batch_and_prepared):
        penalty = dynamics.bounds_penalty(network, config=params.config)
        return member_loss(network, batch_and_prepared) + penalty

    return member_loss, objective


def _split(key, data: ReplayState, prepared, num_members: int, config: FitConfig):
    """Returns hold-out rows and each member's training rows, all of fixed shapes."""
    capacity, size = data.capacity, data.size
    # The order depends on the row numbers alone. A network that continues from an
    # earlier fit has then never trained on a held-out row, but for a few at the border.
    rank = jax.random.uniform(jax.random.key(0), (capacity,))
    order = jnp.argsort(jnp.where(jnp.arange(capacity) < size, rank, jnp.inf))
    if config.holdout == 0.0:
        max_score = min(config.max_holdout, capacity)
        num_score, num_held = jnp.minimum(size, max_score), 0
    else:
        share = max(1, int(capacity * config.holdout))
        max_score = min(config.max_holdout, share)
        num_held = (size * config.holdout).astype(jnp.int32)
        num_score = num_held = jnp.clip(num_held, 1, max_score)
    num_train = size - num_held
    train = order[(num_held + jnp.arange(capacity)) % capacity]
    if config.bootstrap:
        picks = jax.random.randint(
            key, (num_members, capacity), 0, jnp.maximum(num_train, 1)
        )
        train_rows = train[picks]
    else:
        train_rows = jnp.broadcast_to(train, (num_members, capacity))
    return _Data(
        data.data, prepared, train_rows, num_train, order[:max_score], num_score
    )


def _start(problem: _Problem, network, opt_state) -> _Progress:
    score = _scores(problem, network)
    return _Progress(
        network=network,
        opt_state=opt_state,
        best_network=network,
        best_score=score,
        last_score=score,
        improved=jnp.zeros_like(score, bool),
        train_loss=jnp.full_like(score, jnp.nan),
        epoch=jnp.int32(0),
        steps=jnp.int32(0),
        epochs_since_improved=jnp.int32(0),
    )


def _continues(carry: _Progress, config: FitConfig) -> jax.Array:
    is_patient = carry.epochs_since_improved < config.patience
    if config.max_steps is not None:
        is_patient &= carry.steps < config.max_steps
    return is_patient & (carry.epoch < config.max_epochs)


def _epoch(key, carry: _Progress, problem: _Problem, config: FitConfig) -> _Progress:
    """Draws as many rows as there are to train on, and updates the hold-out scores."""
    num_batches = -(-problem.data.num_train // config.batch_size)
    if config.max_steps is not None:
        num_batches = jnp.minimum(num_batches, config.max_steps - carry.steps)
    network, opt_state, train_loss = _pass(
        jax.random.fold_in(key, carry.epoch), carry, problem, num_batches, config
    )
    score = _scores(problem, network)
    best = carry.best_score
    # A non-finite score never improves; any finite score improves on a non-finite one.
    margin = config.min_improvement * jnp.abs(best)
    improved = jnp.isfinite(score) & ((score < best - margin) | ~jnp.isfinite(best))
    return _Progress(
        network=network,
        opt_state=opt_state,
        best_network=_where_member(improved, network, carry.best_network),
        best_score=jnp.where(improved, score, best),
        last_score=score,
        improved=carry.improved | improved,
        train_loss=train_loss,
        epoch=carry.epoch + 1,
        steps=carry.steps + num_batches,
        epochs_since_improved=jnp.where(
            jnp.any(improved), 0, carry.epochs_since_improved + 1
        ),
    )


def _pass(key, carry: _Progress, problem: _Problem, num_batches, config: FitConfig):
    """Takes steps on minibatches that are drawn with replacement.

    A permutation would sort the whole buffer in each epoch, which on a CPU takes longer
    than the steps of a small model.
    """
    data = problem.data

    def step(i, inner):
        network, opt_state, total = inner
        drawn = jax.random.randint(
            jax.random.fold_in(key, i), (config.batch_size,), 0, data.num_train
        )
        rows = data.train_rows[:, drawn]  # [E, B]
        batch = jax.tree.map(lambda x: x[rows], (data.transitions, data.prepared))
        network, opt_state, values = _descend(
            problem.objective, network, opt_state, batch, config
        )
        return network, opt_state, total + values

    total = jnp.zeros_like(carry.train_loss)
    network, opt_state, total = jax.lax.fori_loop(
        0, num_batches, step, (carry.network, carry.opt_state, total)
    )
    return network, opt_state, total / num_batches


def _descend(objective, network, opt_state, batch_and_prepared, config: FitConfig):
    """Takes one step of each member; returns network, optimizer state and losses."""
    values, gradient = jax.vmap(jax.value_and_grad(objective))(
        network, batch_and_prepared
    )
    updates, opt_state = _optimizer(config).update(gradient, opt_state, network)
    return optax.apply_updates(network, updates), opt_state, values


def _scores(problem: _Problem, network: Params) -> jax.Array:
    """Returns the mean hold-out loss of each member, `[E]`."""
    data = problem.data
    # Each row is its own batch, so that the rows after the last can be masked.
    by_row = jax.vmap(problem.loss, in_axes=(None, 0))

    def add(i, total):
        positions = i * _SCORE_ROWS + jnp.arange(_SCORE_ROWS)
        rows = data.score_rows[jnp.minimum(positions, data.num_score - 1)]
        batch = jax.tree.map(lambda x: x[rows, None], (data.transitions, data.prepared))
        errors = jax.vmap(by_row, in_axes=(0, None))(network, batch)  # [E, rows]
        return total + jnp.sum(errors, axis=1, where=positions < data.num_score)

    total = jnp.zeros(data.train_rows.shape[0])
    chunks = -(-data.num_score // _SCORE_ROWS)
    return jax.lax.fori_loop(0, chunks, add, total) / data.num_score


def _summarize(last: _Progress) -> Metrics:
    return {
        "model/epochs": last.epoch,
        "model/steps": last.steps,
        "model/train_loss": last.train_loss,
        "model/holdout_loss": last.best_score,
        "model/improved": jnp.sum(last.improved),
        "model/finite": jnp.sum(jnp.isfinite(last.last_score)),
    }


def _diagnose(params, value_fn, loss: ModelLoss, split: _Data, best) -> Metrics:
    """Returns errors per dimension and attention, on hold-out rows."""
    count = min(_DIAGNOSTIC_ROWS, split.score_rows.size)
    # Where there are fewer hold-out rows they repeat, and the errors count each once.
    rows = split.score_rows[jnp.arange(count) % split.num_score]
    once = (jnp.arange(count) < split.num_score)[:, None]
    batch, prepared = jax.tree.map(
        lambda x: x[rows], (split.transitions, split.prepared)
    )
    member = params.replace(network=jax.tree.map(lambda x: x[best], params.network))
    return {
        "model/error_dim": diagnostics.error_per_dim(params, batch, once),
        "model/attention_dim": diagnostics.attention(
            member, batch, value_fn, prepared, loss=loss
        ),
    }


def _weightless(weights: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the share of valid rows whose weights are all zero."""
    flat = jnp.all(weights.reshape(valid.size, -1) == 0.0, axis=1)
    return jnp.mean(flat, where=valid)


def _where_member(mask: jax.Array, new, old):
    """Selects the members of `new` where `mask [E]` is True, else those of `old`."""
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
