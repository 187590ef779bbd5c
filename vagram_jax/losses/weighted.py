"""Weighted squared errors: VaGraM, and the losses that differ from it in the weights.

With the model's error `e = (s_hat - s', r_hat - r)` they are

    mean over the batch of  sum_d w_d e_d^2  +  (r_hat - r)^2

The weights (`weights.py`) don't depend on the model, so a fit prepares them once. In a
stochastic environment the minimiser is the mean of the successors that follow, weighted
by w: the plain mean where all of them weigh the same, as in the losses whose weights
don't depend on the successor, and in `vagram` where the value is linear.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import errors, registry
from vagram_jax.losses import value_gradients as value_weights
from vagram_jax.types import PredictFn, Transition, ValueFn


@registry.register("vagram", prepare=value_weights.from_gradients)
def vagram_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """VaGraM: each dimension counts as much as the value depends on it.

        L = (1/B) sum_b [ sum_d w_bd (s_hat_bd - s'_bd)^2 + (r_hat_b - r_b)^2 ]
        w_bd = (1/K) sum_k (dV_k(s'_b) / ds'_d)^2

    The bounded objective of Voelcker et al. 2022 (arXiv 2204.01464), without the factor
    obs_dim of its Cauchy-Schwarz bound, as in the authors' released loss: it would
    only change the balance with the reward (`WeightConfig.scale_by_dim` puts it back).
    For an ensemble the mean over members. Differentiate it as it is:
    `jax.grad(vagram_loss)(params, batch, value_fn)`. To hand `value_fn` through `jit`
    or `vmap` as an argument, make it a `jax.tree_util.Partial`, or close over it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim]` from `value_gradient_weights` for this batch, if at hand;
        `value_fn` is then not used.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn` or weights.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("vagram_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.value_gradient_weights(value_fn, batch.next_obs)
    return jnp.mean(errors.squared(prediction, batch, weights))


@registry.register("mse")
def mse_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
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
    prediction = errors.predicted("mse_loss", params, batch, predict)
    return jnp.mean(errors.squared(prediction, batch, jnp.ones_like(batch.next_obs)))


@registry.register("mse_normalized", prepare=value_weights.from_variances)
def mse_normalized_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Squared error on standardised targets: each target counts by its variance.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim + 1]` from `weights.from_variances`, over all of the data;
        without them the variances of this batch are used.

    Returns:
      A scalar, without a unit.

    Raises:
      ValueError: shapes disagree or `batch` holds NaN.
    """
    prediction = errors.predicted("mse_normalized_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.from_variances(batch, value_fn)
    return jnp.mean(errors.squared(prediction, batch, weights))


@registry.register("value_weighted", prepare=value_weights.from_values)
def value_weighted_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Squared error in which a sample counts by the magnitude of its value.

        w_b = |V(s'_b)| / mean |V|, with |V| the mean over the K functions

    A baseline of the VaGraM paper: it knows where values are high, not what they depend
    on.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim]`, prepared over all of the data, if at hand.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("value_weighted_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.from_values(batch, value_fn)
    return jnp.mean(errors.squared(prediction, batch, weights))


@registry.register("constant_weights", prepare=value_weights.from_mean_gradients)
def constant_weights_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """VaGraM with one weight per dimension, the same for every sample.

        w_d = (1/B) sum_b (1/K) sum_k (dV_k(s'_b) / ds'_d)^2

    What is left of VaGraM without its dependence on the state: an ablation, close to
    what the paper's code did until April 2022, when it took the gradient at the state
    difference, which is near the origin for every sample.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, obs_dim]`, prepared over all of the data, if at hand.

    Returns:
      A scalar, in (units of return)^2.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("constant_weights_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.from_mean_gradients(batch, value_fn)
    return jnp.mean(errors.squared(prediction, batch, weights))


@registry.register("sample_weighted", reads=("weight",))
def sample_weighted_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Squared error in which each transition counts as much as `batch.weight` says.

        L = (1/B) sum_b w_b [ sum_d (s_hat_bd - s'_bd)^2 + (r_hat_b - r_b)^2 ]

    For weights that come from elsewhere: the occupancy ratio of the policy (TOM, Ma et
    al. 2023, arXiv 2305.12663), its policy gradient (GAMPS, D'Oro et al. 2020), or a
    distance to an expert (Lambert et al. 2020). Training records no such weights: there
    register a loss of your own that calls this one, with a `prepare` that makes them.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B]`, in place of `batch.weight`.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or there are no weights.
    """
    del value_fn
    prediction = errors.predicted("sample_weighted_loss", params, batch, predict)
    weights = batch.weight if weights is None else weights
    if weights is None:
        raise ValueError(
            "sample_weighted_loss: batch.weight is missing; it must hold one weight "
            "for each transition"
        )
    errors.check_weights(weights, batch, ())
    ones = jnp.ones_like(batch.next_obs)
    return jnp.mean(weights * errors.squared(prediction, batch, ones))
