"""Weighted squared errors: VaGraM, and the losses that differ from it in the weights.

With the model's error `e = (s_hat - s', r_hat - r)` they are

    mean over the batch of  sum_d w_d e_d^2  +  (r_hat - r)^2

Each loss stands below the function that computes its weights. In a stochastic
environment the minimizer is the mean of the possible next states, weighted by w: the
plain mean if w is the same for all of them, as in the losses whose weights don't depend
on the next state, and in `vagram` for a linear value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.config import ConfigError
from vagram_jax.losses import batches, checks, registry, value_gradients
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.types import Batch, PredictFn, Prediction, Transition, ValueFn


def squared_error(
    where: str, prediction: Prediction, batch: Transition, weights: jax.Array
) -> jax.Array:
    """Returns the weighted squared error of the state plus that of the reward.

    Args:
      where: the caller, for the message.
      prediction: the model's prediction.
      batch: `[B, ...]` or `[E, B, ...]` transitions.
      weights: `[B, obs_dim]`, or `[B, obs_dim + 1]` with the reward's weight last.

    Returns:
      `[..., B]`.

    Raises:
      ValueError: the weights have another shape.
    """
    obs_dim = batch.next_obs.shape[-1]
    checks.check_prepared(where, weights, batch, prediction, (obs_dim,), (obs_dim + 1,))
    square = jnp.square(prediction.next_obs - batch.next_obs)
    error = reward_error(prediction, batch)
    if weights.shape[-1] == obs_dim + 1:
        error = weights[..., -1] * error
    return jnp.sum(weights[..., :obs_dim] * square, axis=-1) + error


def reward_error(prediction: Prediction, batch: Transition) -> jax.Array:
    """Returns the squared error of the reward, `[..., B]`."""
    return jnp.square(prediction.reward - batch.reward)


def vagram_weights(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
) -> jax.Array:
    """Returns the weights of `vagram_loss` for a batch.

    Args:
      batch: `[..., ]` transitions.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      where: `[...]` bool, the rows that count for quantiles, means and variances; the
        others get weights of zero.
      gradients: how value gradients are taken.
      weights: how they become weights.

    Returns:
      `[..., obs_dim]`. No gradient flows through it. If all are zero, a `UserWarning`
      says so, unless JAX traces the call.

    Raises:
      ConfigError: a coefficient is a schedule that changes, or an option has no effect
        or is out of range.
      ValueError: `value_fn` doesn't return a floating scalar or `[K]`.
    """
    checks.check_options("weights", None, gradients=gradients, weights=weights)
    gradient_coef, mse_coef = value_gradients.coefficients(weights)
    if weights.mse_normalized and _is_zero(mse_coef):
        raise ConfigError(
            "weights: mse_normalized=True has no effect with mse_coef=0; set mse_coef"
        )
    from_gradients = value_gradients.value_gradient_weights(
        value_fn,
        value_gradients.gradient_states(batch, gradients),
        where=value_gradients.counted_rows(batch, where, gradients),
        clip_quantile=gradients.clip_quantile,
        normalize=weights.normalize,
        scale_by_dim=weights.scale_by_dim,
    )
    from_errors = jnp.ones_like(from_gradients)
    if weights.mse_normalized:
        from_errors = variance_weights(batch, where=where)[..., :-1]
        from_errors = from_errors / jnp.mean(from_errors, axis=-1, keepdims=True)
    if where is not None:
        from_errors = jnp.where(where[..., None], from_errors, 0.0)
    total = mse_coef * from_errors + gradient_coef * from_gradients
    checks.warn_of_zeros("vagram_weights", batch, total)
    return jax.lax.stop_gradient(total)


@registry.register(
    "vagram", prepare=vagram_weights, reads_config=("gradients", "weights")
)
def vagram_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
) -> jax.Array:
    """VaGraM: weights each dimension by the squared value gradient.

        L = (1/B) sum_b [ sum_d w_bd (s_hat_bd - s'_bd)^2 + (r_hat_b - r_b)^2 ]
        w_bd = (1/K) sum_k (dV_k(s'_b) / ds'_d)^2

    The bounded objective of Voelcker et al. 2022 (arXiv 2204.01464), without the factor
    obs_dim of its Cauchy-Schwarz bound, as in the authors' released loss: it would
    only change the balance with the reward (`WeightConfig.scale_by_dim` restores it).
    For an ensemble it is the mean over members. `jax.grad(vagram_loss)` differentiates
    it in `params`. To pass `value_fn` through `jit` or `vmap` as an argument, make it a
    `jax.tree_util.Partial`, or close over it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member: a dict,
        `Transition`, NamedTuple or dataclass of JAX or NumPy arrays, see `types.Batch`.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, obs_dim]` or one set per member `[E, B, obs_dim]`, the weights of
        this batch, as from `vagram_weights`; `value_fn` is then not used.
      gradients: how value gradients are taken.
      weights: how they become weights.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn` or weights.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, `value_fn` has another form, or an
        option has no effect or is a schedule that changes.
    """
    where = "vagram_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    checks.check_options(where, prepared, gradients=gradients, weights=weights)
    if prepared is None:
        prepared = vagram_weights(batch, value_fn, gradients=gradients, weights=weights)
    return jnp.mean(squared_error(where, prediction, batch, prepared))


@registry.register("mse")
def mse_loss(
    params,
    batch: Batch,
    value_fn: ValueFn | None = None,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """Squared error of the next state, summed over dimensions, and of the reward.

    The likelihood of a Gaussian with fixed unit variance, up to a constant and a half.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree or `batch` holds NaN.
    """
    del value_fn
    batch, prediction = checks.predict_checked("mse_loss", params, batch, predict)
    ones = jnp.ones_like(batch.next_obs)
    return jnp.mean(squared_error("mse_loss", prediction, batch, ones))


def variance_weights(
    batch: Transition,
    value_fn: ValueFn | None = None,
    *,
    where: jax.Array | None = None,
) -> jax.Array:
    """Returns one over the variance of each target, which standardizes the targets.

    Args:
      batch: `[..., ]` transitions.
      value_fn: not used.
      where: `[...]` bool, the rows that count.

    Returns:
      `[..., obs_dim + 1]`, the same in each row, the reward's last.
    """
    del value_fn
    targets = dynamics.targets(batch)
    counted = jnp.ones(batch.reward.shape, bool) if where is None else where
    _, std = dynamics.moments(
        targets.reshape(-1, targets.shape[-1]), counted.reshape(-1)
    )
    return jax.lax.stop_gradient(jnp.broadcast_to(1.0 / jnp.square(std), targets.shape))


@registry.register("mse_normalized", prepare=variance_weights)
def mse_normalized_loss(
    params,
    batch: Batch,
    value_fn: ValueFn | None = None,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
) -> jax.Array:
    """Squared error on standardized targets: weights each target by 1 / its variance.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, obs_dim + 1]`, as from `variance_weights` over all of the data;
        None takes the variances of this batch.

    Returns:
      A scalar, without a unit.

    Raises:
      ValueError: shapes disagree or `batch` holds NaN.
    """
    where = "mse_normalized_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    if prepared is None:
        prepared = variance_weights(batch, value_fn)
    return jnp.mean(squared_error(where, prediction, batch, prepared))


def magnitude_weights(
    batch: Transition, value_fn: ValueFn, *, where: jax.Array | None = None
) -> jax.Array:
    """Returns the magnitude of each next state's value, scaled to a mean of one.

    Args:
      batch: `[..., ]` transitions.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the mean.

    Returns:
      `[..., obs_dim]`, the same in each dimension, without a unit.
    """
    values = value_gradients.values_of(value_fn, batch.next_obs)
    magnitudes = jnp.mean(jnp.abs(values), axis=-1)
    weights = value_gradients.to_mean_of_one(magnitudes[..., None], where)
    return jax.lax.stop_gradient(jnp.broadcast_to(weights, batch.next_obs.shape))


@registry.register("value_weighted", prepare=magnitude_weights)
def value_weighted_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
) -> jax.Array:
    """Squared error in which each sample is weighted by the magnitude of its value.

        w_b = |V(s'_b)| / mean |V|, with |V| the mean over the K functions

    A baseline of the VaGraM paper: its weights depend on how large values are, not on
    which dimensions they depend on.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, obs_dim]`, as from `magnitude_weights` over all of the data; None
        takes the mean over this batch.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` has another form.
    """
    where = "value_weighted_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    if prepared is None:
        prepared = magnitude_weights(batch, value_fn)
    return jnp.mean(squared_error(where, prediction, batch, prepared))


def mean_vagram_weights(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
) -> jax.Array:
    """Returns the mean of `vagram_weights` over the rows that count.

    Args and errors are those of `vagram_weights`.

    Returns:
      `[..., obs_dim]`, the same in each row.
    """
    per_row = vagram_weights(
        batch, value_fn, where=where, gradients=gradients, weights=weights
    )
    rows = tuple(range(per_row.ndim - 1))
    counted = None if where is None else where[..., None]
    return jnp.broadcast_to(jnp.mean(per_row, axis=rows, where=counted), per_row.shape)


@registry.register(
    "constant_weights",
    prepare=mean_vagram_weights,
    reads_config=("gradients", "weights"),
)
def constant_weights_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
) -> jax.Array:
    """VaGraM with one weight per dimension, the same for every sample.

        w_d = (1/B) sum_b (1/K) sum_k (dV_k(s'_b) / ds'_d)^2

    An ablation: VaGraM without its dependence on the state. The paper's code did nearly
    this until April 2022, when it took the gradient at the state difference, which is
    near the origin for every sample.

    Arguments, result and errors are those of `vagram_loss`; `prepared` has the shape
    `[B, obs_dim]`, as from `mean_vagram_weights` over all of the data; None takes the
    mean over this batch.
    """
    where = "constant_weights_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    checks.check_options(where, prepared, gradients=gradients, weights=weights)
    if prepared is None:
        prepared = mean_vagram_weights(
            batch, value_fn, gradients=gradients, weights=weights
        )
    return jnp.mean(squared_error(where, prediction, batch, prepared))


@registry.register("sample_weighted", reads=("weight",))
def sample_weighted_loss(
    params,
    batch: Batch,
    value_fn: ValueFn | None = None,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
) -> jax.Array:
    """Squared error in which each transition is weighted by `batch.weight`.

        L = (1/B) sum_b w_b [ sum_d (s_hat_bd - s'_bd)^2 + (r_hat_b - r_b)^2 ]

    For weights from another source: the occupancy ratio of the policy (TOM, Ma et al.
    2023, arXiv 2305.12663), its policy gradient (GAMPS, D'Oro et al. 2020), or a
    distance to an expert (Lambert et al. 2020). Training records no such weights: to
    train with them, register a loss that calls this one, with a `prepare` that computes
    them.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B]`, replaces `batch.weight`.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or there are no weights.
    """
    del value_fn
    where = "sample_weighted_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    weights = prepared
    if weights is None:
        missing = "it must hold one weight for each transition, [B]"
        weights = batches.field(where, batch, "weight", missing)
    checks.check_prepared(where, weights, batch, prediction, ())
    ones = jnp.ones_like(batch.next_obs)
    return jnp.mean(weights * squared_error(where, prediction, batch, ones))


def _is_zero(coefficient) -> bool:
    return not isinstance(coefficient, jax.core.Tracer) and coefficient == 0.0
