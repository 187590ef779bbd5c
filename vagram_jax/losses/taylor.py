"""Taylor expansions of the value error around the real next state.

The losses need derivatives of the value function at observed states only, and no value
at a predicted state, where nothing was learned. Each loss stands below the function
that computes its derivatives.

In a stochastic environment the minimizer of the first order is the mean of the possible
next states, weighted by their squared gradients: the plain mean for a linear value. The
minimizer of the second order is biased, as for all losses that compare values of single
samples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import checks, registry, value_gradients, weighted
from vagram_jax.losses.value_gradients import GradientConfig
from vagram_jax.types import Batch, PredictFn, Transition, ValueFn


def slopes(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """Returns the signed value gradients of a batch.

    Args:
      batch: `[..., ]` transitions.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`.
      where: `[...]` bool, the rows that count for the quantile.
      gradients: how value gradients are taken.

    Returns:
      `[..., K, obs_dim]`. No gradient flows through it.

    Raises:
      ConfigError: `gradients` needs a field that the batch lacks.
    """
    states = value_gradients.gradient_states(batch, gradients)
    where = value_gradients.counted_rows(batch, where, gradients)
    clipped = value_gradients.clip(
        value_gradients.value_gradients(value_fn, states, where=where),
        gradients.clip_quantile,
        where=where,
    )
    return _masked(clipped, batch, gradients)


@registry.register("vagram_unbounded", prepare=slopes, reads_config=("gradients",))
def vagram_unbounded_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """The first-order Taylor form of the value error, before it is bounded.

        L = (1/B) sum_b [ (1/K) sum_k (dV_k(s'_b)/ds' . (s_hat_b - s'_b))^2
                          + (r_hat_b - r_b)^2 ]

    Voelcker et al. 2022 (arXiv 2204.01464). It ignores errors orthogonal to the
    gradient, which is why the paper bounds it.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, K, obs_dim]`, the gradients of this batch, as from `slopes`;
        `value_fn` is then not used.
      gradients: how value gradients are taken.

    Returns:
      A scalar, in (units of return)^2.

    Raises:
      ValueError: as for `vagram_loss`.
    """
    where = "vagram_unbounded_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    checks.check_options(where, prepared, gradients=gradients)
    if prepared is None:
        prepared = slopes(batch, value_fn, gradients=gradients)
    num_values = _num_values(prepared, axis=-2)
    checks.check_prepared(
        where, prepared, batch, prediction, (num_values, batch.obs.shape[-1])
    )
    error = prediction.next_obs - batch.next_obs
    value_error = jnp.einsum("...kd,...d->...k", prepared, error)
    return jnp.mean(
        jnp.mean(jnp.square(value_error), axis=-1)
        + weighted.reward_error(prediction, batch)
    )


def axis_terms(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """Returns the gradient and the diagonal of the Hessian of each value function.

    Args and errors are those of `slopes`; the Hessian is never clipped.

    Returns:
      `[..., K, 2, obs_dim]`, the gradient first. No gradient flows through it.
    """
    gradient = slopes(batch, value_fn, where=where, gradients=gradients)
    hessians = _hessians(batch, value_fn, where, gradients)
    diagonal = jnp.diagonal(hessians, axis1=-2, axis2=-1)
    return jnp.stack([gradient, diagonal], axis=-2)


@registry.register(
    "quadratic",
    prepare=axis_terms,
    reads_config=("gradients",),
    prepares_weights=False,
)
def quadratic_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """The second-order Taylor form, bounded dimension by dimension.

        L = (1/B) sum_b [ (1/K) sum_k sum_d (g_kd e_bd + H_kdd e_bd^2 / 2)^2
                          + (r_hat_b - r_b)^2 ]

    with gradient g and Hessian H of V_k at the real next state. Like VaGraM it leaves
    out the factor obs_dim of the Cauchy-Schwarz bound, and it equals VaGraM for H = 0.
    It leaves out the mixed terms of H; `quadratic_eigen` includes them. Our derivation,
    after the form in Voelcker's code of 2022 (`cvoelcker/vagram_quadratic`), which sums
    (lambda_j q_j . e)^2 separately from the gradient's term. A dimension's term is also
    zero at e = -2 g / H, so the error must be small from the start. Critics with ReLU
    have curvature only through the policy: set `sac.activation=silu`.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model, `(params, obs, action)` to a prediction in the data's units.
      prepared: `[B, K, 2, obs_dim]`, as from `axis_terms` for this batch; `value_fn` is
        then not used.
      gradients: how value gradients are taken; Hessians are taken at the same states.

    Returns:
      A scalar, in (units of return)^2. No gradient flows into `value_fn`.

    Raises:
      ValueError: as for `vagram_loss`.
    """
    where = "quadratic_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    checks.check_options(where, prepared, gradients=gradients)
    if prepared is None:
        prepared = axis_terms(batch, value_fn, gradients=gradients)
    num_values, obs_dim = _num_values(prepared, axis=-3), batch.obs.shape[-1]
    checks.check_prepared(where, prepared, batch, prediction, (num_values, 2, obs_dim))
    error = (prediction.next_obs - batch.next_obs)[..., None, :]
    return _second_order(error, prepared, prediction, batch)


def eigenvector_terms(
    batch: Transition,
    value_fn: ValueFn,
    *,
    where: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """Returns gradient and curvature of each value along its Hessian's eigenvectors.

    Args and errors are those of `slopes`; the Hessian is never clipped.

    Returns:
      `[..., K, obs_dim + 2, obs_dim]`: the gradient in the basis of the eigenvectors,
      the eigenvalues, and the eigenvectors as rows. No gradient flows through it.
    """
    gradient = slopes(batch, value_fn, where=where, gradients=gradients)
    hessians = _hessians(batch, value_fn, where, gradients)
    eigenvalues, vectors = jnp.linalg.eigh(hessians)
    rotated = jnp.einsum("...dj,...d->...j", vectors, gradient)
    rows = [
        rotated[..., None, :],
        eigenvalues[..., None, :],
        jnp.swapaxes(vectors, -1, -2),
    ]
    return jnp.concatenate(rows, axis=-2)


@registry.register(
    "quadratic_eigen",
    prepare=eigenvector_terms,
    reads_config=("gradients",),
    prepares_weights=False,
)
def quadratic_eigen_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
) -> jax.Array:
    """The second-order Taylor form, bounded along the Hessian's eigenvectors.

        L = (1/B) sum_b [ (1/K) sum_k sum_j (q_kj.g_k q_kj.e_b
                          + lambda_kj (q_kj.e_b)^2 / 2)^2 + (r_hat_b - r_b)^2 ]

    with H_k = sum_j lambda_kj q_kj q_kj^T at the real next state. It differs from
    `quadratic_loss` in the basis only. The sum of the brackets over j, before they are
    squared, is the whole second-order expansion. For H = 0 every basis consists of
    eigenvectors, and the loss depends on which one `eigh` returns.

    Arguments, result and errors are those of `quadratic_loss`; `prepared` has the shape
    `[B, K, obs_dim + 2, obs_dim]`, as from `eigenvector_terms` for this batch.
    """
    where = "quadratic_eigen_loss"
    batch, prediction = checks.predict_checked(where, params, batch, predict)
    checks.check_options(where, prepared, gradients=gradients)
    if prepared is None:
        prepared = eigenvector_terms(batch, value_fn, gradients=gradients)
    num_values, obs_dim = _num_values(prepared, axis=-3), batch.obs.shape[-1]
    checks.check_prepared(
        where, prepared, batch, prediction, (num_values, obs_dim + 2, obs_dim)
    )
    error = prediction.next_obs - batch.next_obs
    rotated = jnp.einsum("...kjd,...d->...kj", prepared[..., 2:, :], error)
    return _second_order(rotated, prepared[..., :2, :], prediction, batch)


def _num_values(prepared: jax.Array, axis: int) -> int:
    """K, or 1 for an array with too few axes, which the shape check then refuses."""
    return prepared.shape[axis] if prepared.ndim >= -axis else 1


def _hessians(batch: Transition, value_fn, where, config: GradientConfig) -> jax.Array:
    """The Hessians at the states of `slopes`, with the same rows masked."""
    states = value_gradients.gradient_states(batch, config)
    hessians = value_gradients.value_hessians(value_fn, states, where=where)
    return _masked(hessians, batch, config)


def _masked(derivatives: jax.Array, batch: Transition, config: GradientConfig):
    """Zero where a transition terminated, if these are masked."""
    if not config.mask_terminated:
        return derivatives
    ended = value_gradients.terminated(batch)
    ended = ended.reshape(*ended.shape, *[1] * (derivatives.ndim - ended.ndim))
    return jnp.where(ended, 0.0, derivatives)


def _second_order(error, terms, prediction, batch: Transition) -> jax.Array:
    """The bounded form; `error` is `[..., B, K or 1, obs_dim]` in the terms' basis."""
    slope, curvature = terms[..., 0, :], terms[..., 1, :]
    parts = jnp.square(slope * error + 0.5 * curvature * jnp.square(error))
    value_error = jnp.mean(jnp.sum(parts, axis=-1), axis=-1)
    return jnp.mean(value_error + weighted.reward_error(prediction, batch))
