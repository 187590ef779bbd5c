"""Taylor expansions of the value error around the real next state.

Comes in: derivatives of the value function at states that were seen. Goes out: losses
that need no value at a predicted state, where nothing was learned.

In a stochastic environment the minimiser of the first order is the mean of the states
that follow, weighted by the squared gradients there: the plain mean where the value is
linear. That of the second order is biased, as with all losses that compare values of
single samples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import errors, registry
from vagram_jax.losses import value_gradients as value_weights
from vagram_jax.types import PredictFn, Transition, ValueFn


@registry.register("vagram_unbounded", prepare=value_weights.gradients_of)
def vagram_unbounded_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The first-order Taylor form of the value error, before it is bounded.

        L = (1/B) sum_b [ (1/K) sum_k (dV_k(s'_b)/ds' . (s_hat_b - s'_b))^2
                          + (r_hat_b - r_b)^2 ]

    Voelcker et al. 2022 (arXiv 2204.01464). Any error orthogonal to the gradient is
    free, which is why the paper bounds it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      weights: `[B, K, obs_dim]`, the gradients of this batch, if at hand.

    Returns:
      A scalar, in (units of return)^2.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("vagram_unbounded_loss", params, batch, predict)
    if weights is None:
        weights = value_weights.value_gradients(value_fn, batch.next_obs)
    num_values, obs_dim = weights.shape[-2], batch.next_obs.shape[-1]
    errors.check_weights(weights, batch, (num_values, obs_dim))
    error = prediction.next_obs - batch.next_obs
    value_error = jnp.einsum("...kd,...d->...k", weights, error)
    return jnp.mean(
        jnp.mean(jnp.square(value_error), axis=-1) + errors.reward(prediction, batch)
    )


@registry.register("quadratic", prepare=value_weights.taylor_terms, takes="terms")
def quadratic_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    terms: jax.Array | None = None,
) -> jax.Array:
    """The second-order Taylor form, bounded dimension by dimension.

        L = (1/B) sum_b [ (1/K) sum_k sum_d (g_kd e_bd + H_kdd e_bd^2 / 2)^2
                          + (r_hat_b - r_b)^2 ]

    with gradient g and Hessian H of V_k at the real next state. As VaGraM it leaves out
    the factor obs_dim of the Cauchy-Schwarz bound, and it is VaGraM where H is zero.
    The mixed terms of H are left out; `quadratic_eigen` has them. Our derivation, after
    the form in Voelcker's code of 2022 (`cvoelcker/vagram_quadratic`), which sums
    (lambda_j q_j . e)^2 apart from the gradient's term. A dimension's term is zero also
    at e = -2 g / H, so a small error is needed to begin with. Critics with ReLU have no
    curvature but through the policy: take `sac.activation=silu`.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      terms: `[B, K, 2, obs_dim]` from `weights.taylor_terms`, if at hand.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("quadratic_loss", params, batch, predict)
    if terms is None:
        terms = value_weights.taylor_terms(batch, value_fn)
    num_values, obs_dim = terms.shape[-3], batch.next_obs.shape[-1]
    errors.check_weights(terms, batch, (num_values, 2, obs_dim))
    error = (prediction.next_obs - batch.next_obs)[..., None, :]
    return _second_order(error, terms, prediction, batch)


@registry.register(
    "quadratic_eigen",
    prepare=value_weights.taylor_terms_of_eigenbasis,
    takes="terms",
)
def quadratic_eigen_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    terms: jax.Array | None = None,
) -> jax.Array:
    """The second-order Taylor form, bounded along the Hessian's eigenvectors.

        L = (1/B) sum_b [ (1/K) sum_k sum_j (q_kj.g_k q_kj.e_b
                          + lambda_kj (q_kj.e_b)^2 / 2)^2 + (r_hat_b - r_b)^2 ]

    with H_k = sum_j lambda_kj q_kj q_kj^T at the real next state. Summed over j before
    it is squared, the bracket is the whole second-order expansion; otherwise as
    `quadratic_loss`, from which it differs in the basis. Where H is zero any basis is
    one of eigenvectors, and the one that comes decides.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      terms: `[B, K, obs_dim + 2, obs_dim]` from `weights.taylor_terms_of_eigenbasis`,
        if at hand.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or `value_fn` is of another form.
    """
    prediction = errors.predicted("quadratic_eigen_loss", params, batch, predict)
    if terms is None:
        terms = value_weights.taylor_terms_of_eigenbasis(batch, value_fn)
    num_values, obs_dim = terms.shape[-3], batch.next_obs.shape[-1]
    errors.check_weights(terms, batch, (num_values, obs_dim + 2, obs_dim))
    basis = terms[..., 2:, :]
    error = prediction.next_obs - batch.next_obs
    turned = jnp.einsum("...kjd,...d->...kj", basis, error)
    return _second_order(turned, terms[..., :2, :], prediction, batch)


def _second_order(error, terms, prediction, batch) -> jax.Array:
    """The bounded form: `error` `[..., B, K or 1, obs_dim]` in the basis of `terms`."""
    slope, curvature = terms[..., 0, :], terms[..., 1, :]
    parts = jnp.square(slope * error + 0.5 * curvature * jnp.square(error))
    value_error = jnp.mean(jnp.sum(parts, axis=-1), axis=-1)
    return jnp.mean(value_error + errors.reward(prediction, batch))
