"""Likelihoods: what a probabilistic ensemble is trained with.

They predict a variance as well, so that a stochastic environment doesn't bias them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import errors, registry
from vagram_jax.losses import value_gradients as value_weights
from vagram_jax.types import PredictFn, Transition, ValueFn


@registry.register("mle", gaussian=True)
def mle_loss(
    params,
    batch: Transition,
    value_fn: ValueFn = None,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """The negative log-likelihood of a diagonal Gaussian, in nats.

        L = (1/B) sum_b sum_j 1/2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    over the state dimensions and the reward, as in PETS and MBPO (Chua et al. 2018,
    Janner et al. 2019), there twice this and without the constant.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      predict: the model; it returns a log-variance as third element.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, or there is no log-variance.
    """
    del value_fn
    prediction = errors.predicted("mle_loss", params, batch, predict, gaussian=True)
    nll = errors.nll(prediction, batch)
    # Summed as in `vagram_nll_loss`, which with weights of one is the same to the bit.
    return jnp.mean(jnp.sum(nll[..., :-1], axis=-1) + nll[..., -1])


@registry.register("vagram_nll", prepare=value_weights.from_gradients, gaussian=True)
def vagram_nll_loss(
    params,
    batch: Transition,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The Gaussian likelihood with each dimension's term weighted as in VaGraM.

        L = (1/B) sum_b sum_j w_bj / 2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    with the weights of `vagram_loss`, one for the reward. With weights of one it is
    `mle_loss`. The paper has no such loss; it is VaGraM's for a probabilistic ensemble.

    Args:
      params: what `init_dynamics` with a Gaussian head returned, or any pytree.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: one state `[obs_dim]` to a scalar or to `[K]`, in units of return.
      predict: the model; it returns a log-variance as third element.
      weights: `[B, obs_dim]` from `value_gradient_weights` for this batch, if at hand.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes disagree, `batch` holds NaN, there is no log-variance, or
        `value_fn` is of another form.
    """
    where = "vagram_nll_loss"
    prediction = errors.predicted(where, params, batch, predict, gaussian=True)
    if weights is None:
        weights = value_weights.value_gradient_weights(value_fn, batch.next_obs)
    errors.check_weights(weights, batch, batch.next_obs.shape[-1:])
    nll = errors.nll(prediction, batch)
    return jnp.mean(jnp.sum(weights * nll[..., :-1], axis=-1) + nll[..., -1])
