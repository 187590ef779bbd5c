"""Diagnostics of a dynamics model: its errors, and what a loss attends to."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.dynamics import DynamicsParams
from vagram_jax.losses import ModelLoss
from vagram_jax.types import Metrics, Prediction, TerminationFn, Transition, ValueFn


def error_per_dim(
    params: DynamicsParams, batch: Transition, where: jax.Array
) -> jax.Array:
    """Returns the root mean squared error of each state dimension, over all members.

    Args:
      params: an ensemble.
      batch: `[B, ...]` transitions.
      where: `[B, 1]` bool, the rows that count.

    Returns:
      `[obs_dim]`, in standard deviations of the change from one state to the next.
    """
    prediction = dynamics.predict(params, batch.obs, batch.action)
    square = jnp.square(prediction.next_obs - batch.next_obs)
    square = jnp.mean(square, axis=(0, 1), where=where)
    change = jnp.var(batch.next_obs - batch.obs, axis=0, where=where)
    return jnp.sqrt(square / jnp.where(change > 0.0, change, 1.0))


def errors_on_new(
    params: DynamicsParams,
    batch: Transition,
    where: jax.Array,
    value_fn: ValueFn,
    termination: TerminationFn,
) -> Metrics:
    """Returns the errors of what imagination predicts, on data that no fit has seen.

    Args:
      params: an ensemble; errors are over all members.
      batch: `[B, ...]` real transitions since the last fit.
      where: `[B]` bool, the rows that count.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      termination: returns whether one step ends an episode.

    Returns:
      `model/new_error_dim`, `[obs_dim]`, as from `error_per_dim`; `model/new_reward`
      and `model/new_value`, root mean squared errors of the reward and of the value of
      the successor, in their standard deviations over the rows; `model/new_missed`, the
      share of terminations that the model misses (NaN if there are none), and
      `model/new_false_alarms`, the share of other steps that end in imagination.
    """
    prediction = dynamics.predict(params, batch.obs, batch.action)  # [E, B, ...]
    values = jax.vmap(value_fn)(batch.next_obs)
    imagined = jax.vmap(jax.vmap(value_fn))(prediction.next_obs)
    ends = jax.vmap(jax.vmap(termination), in_axes=(None, None, 0))(
        batch.obs, batch.action, prediction.next_obs
    )
    return {
        "model/new_error_dim": error_per_dim(params, batch, where[:, None]),
        "model/new_reward": _relative_error(prediction.reward, batch.reward, where),
        "model/new_value": _relative_error(imagined, values, where),
        "model/new_missed": jnp.mean(~ends, where=where & batch.terminated),
        "model/new_false_alarms": jnp.mean(ends, where=where & ~batch.terminated),
    }


def k_step_errors(
    params: DynamicsParams,
    played: Transition,
    valid: jax.Array,
    value_fn: ValueFn,
    *,
    horizon: int,
) -> dict[str, jax.Array]:
    """Returns the errors of predictions of 1 to `horizon` steps.

    Each member starts at every real state and continues from its own predictions, by
    their mean, with the actions that were played.

    Args:
      params: an ensemble.
      played: `[N, T, ...]` real transitions of N episodes.
      valid: `[N, T]` bool, the steps until the end of an episode.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      horizon: number of steps, at least 1.

    Returns:
      By name, with k - 1 as the first index: `error_dim` `[horizon, obs_dim]`, the root
      mean squared error of the state after k steps, over all members, and
      `disagreement_dim` `[horizon, obs_dim]`, the root mean squared standard deviation
      of the members, both in standard deviations of the real change in k steps;
      `value_error` `[horizon]`, that of the value of the predicted state, in standard
      deviations of the values of the real ones; and `rows` `[horizon]`, the number of
      starts. NaN where no episode is long enough.
    """
    played, valid = jax.tree.map(jnp.asarray, (played, valid))
    num_members = jax.tree.leaves(params.network)[0].shape[0]
    start, length = played.obs, valid.shape[1]

    def flat(x):
        return x.reshape(-1, *x.shape[2:])  # [N T, ...]

    def step(carry, k):
        predicted, counts = carry  # [E, N T, obs_dim], [N, T]
        at = jnp.arange(length) + k
        counts = counts & (at < length) & valid[:, jnp.minimum(at, length - 1)]
        now = jax.tree.map(lambda x: flat(x[:, jnp.minimum(at, length - 1)]), played)
        actions = jnp.broadcast_to(now.action, (num_members, *now.action.shape))
        predicted = dynamics.predict(params, predicted, actions).next_obs
        where = flat(counts)
        change = jnp.var(now.next_obs - flat(start), axis=0, where=where[:, None])
        scale = jnp.sqrt(jnp.where(change > 0.0, change, 1.0))
        error = jnp.square(predicted - now.next_obs)
        spread = jnp.var(predicted, axis=0)
        values = jax.vmap(value_fn)(now.next_obs)
        imagined = jax.vmap(jax.vmap(value_fn))(predicted)
        return (predicted, counts), {
            "error_dim": jnp.sqrt(jnp.mean(error, (0, 1), where=where[:, None]))
            / scale,
            "disagreement_dim": jnp.sqrt(jnp.mean(spread, 0, where=where[:, None]))
            / scale,
            "value_error": _relative_error(imagined, values, where),
            "rows": jnp.sum(where),
        }

    obs = jnp.broadcast_to(flat(start), (num_members, *flat(start).shape))
    first = obs, jnp.ones_like(valid)
    return jax.lax.scan(step, first, jnp.arange(horizon))[1]


def _relative_error(predicted, real, where) -> jax.Array:
    """Returns the root mean squared error of `[E, B, ...]`, in deviations of `real`."""
    where = where.reshape(-1, *[1] * (real.ndim - 1))
    square = jnp.mean(jnp.square(predicted - real), where=where)
    variance = jnp.var(real, where=where)
    return jnp.sqrt(square / jnp.where(variance > 0.0, variance, 1.0))


def attention(
    params: DynamicsParams,
    batch: Transition,
    value_fn: ValueFn,
    prepared: jax.Array | None = None,
    *,
    loss: ModelLoss,
) -> jax.Array:
    """Returns the share of each state dimension in a loss, at a model's predictions.

        a_d = mean_b |d^2 L_b / d(s_hat_bd)^2|  *  Var_b(s'_bd - s_bd)

    This is the curvature of the loss in each predicted dimension, times the variance
    that there is to predict: the loss that a model incurs by predicting no change in
    that dimension. It is defined for every loss. A loss without curvature, such as
    `value_l1`, has zeros.

    Args:
      params: a single model.
      batch: `[B, ...]` transitions.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      prepared: `[B, ...]`, what the loss prepared for these rows.
      loss: the loss.

    Returns:
      `[obs_dim]` shares, which sum to one or are all zero.
    """

    def sample_loss(next_obs, rest, transition, prepared):
        one_row = jax.tree.map(lambda x: x[None], (rest, transition, prepared))
        rest, transition, prepared = one_row
        return loss(
            Prediction(next_obs[None], *rest),
            transition,
            value_fn,
            prepared=prepared,
            predict=lambda prediction, obs, action: prediction,
        )

    next_obs, *rest = dynamics.predict(params, batch.obs, batch.action)
    curvature = jax.vmap(lambda *row: jnp.diagonal(jax.hessian(sample_loss)(*row)))(
        next_obs, tuple(rest), batch, prepared
    )
    change = jnp.var(batch.next_obs - batch.obs, axis=0)
    share = jnp.mean(jnp.abs(curvature), axis=0) * change
    return share / jnp.where(jnp.sum(share) > 0.0, jnp.sum(share), 1.0)
