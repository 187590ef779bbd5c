"""Gaussian likelihoods, the losses of probabilistic ensembles.

The model predicts a variance as well, so that a stochastic environment doesn't bias it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vagram_jax import dynamics
from vagram_jax.losses import checks, registry, weighted
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.types import Batch, PredictFn, Prediction, Transition, ValueFn


def negative_log_likelihood(prediction: Prediction, batch: Transition) -> jax.Array:
    """Returns the negative log-likelihood of each target, in nats.

    Args:
      prediction: the prediction of a Gaussian model.
      batch: `[B, ...]` or `[E, B, ...]` transitions.

    Returns:
      `[..., B, obs_dim + 1]`, the reward's last.

    Raises:
      ValueError: the prediction has no log-variance, or one of another shape.
    """
    error = jnp.concatenate(
        [
            prediction.next_obs - batch.next_obs,
            (prediction.reward - batch.reward)[..., None],
        ],
        axis=-1,
    )
    log_var = checks.log_var("negative_log_likelihood", prediction)
    return 0.5 * (
        jnp.square(error) * jnp.exp(-log_var) + log_var + jnp.log(2.0 * jnp.pi)
    )


@registry.register("mle", gaussian=True)
def mle_loss(
    params,
    batch: Batch,
    value_fn: ValueFn | None = None,
    *,
    predict: PredictFn = dynamics.predict,
) -> jax.Array:
    """The negative log-likelihood of a diagonal Gaussian, in nats.

        L = (1/B) sum_b sum_j 1/2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    over the state dimensions and the reward. PETS and MBPO (Chua et al. 2018, Janner et
    al. 2019) use twice this, without the constant.

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
    batch, prediction = checks.predict_checked(
        "mle_loss", params, batch, predict, gaussian=True
    )
    nll = negative_log_likelihood(prediction, batch)
    # Summed as in `vagram_nll_loss`, which equals it to the bit with weights of one.
    return jnp.mean(jnp.sum(nll[..., :-1], axis=-1) + nll[..., -1])


@registry.register(
    "vagram_nll",
    prepare=weighted.vagram_weights,
    gaussian=True,
    reads_config=("gradients", "weights"),
)
def vagram_nll_loss(
    params,
    batch: Batch,
    value_fn: ValueFn,
    *,
    predict: PredictFn = dynamics.predict,
    prepared: jax.Array | None = None,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
) -> jax.Array:
    """The Gaussian likelihood with each dimension's term weighted as in VaGraM.

        L = (1/B) sum_b sum_j w_bj / 2 [ e_bj^2 / var_bj + log var_bj + log 2 pi ]

    with the weights of `vagram_loss`, and one for the reward. With weights of one it is
    `mle_loss`. It is not in the paper; it carries VaGraM over to probabilistic
    ensembles.

    Arguments and errors are those of `vagram_loss`; `predict` returns a log-variance as
    third element. The result is in nats times (units of return)^2.
    """
    where = "vagram_nll_loss"
    batch, prediction = checks.predict_checked(
        where, params, batch, predict, gaussian=True
    )
    checks.check_options(where, prepared, gradients=gradients, weights=weights)
    if prepared is None:
        prepared = weighted.vagram_weights(
            batch, value_fn, gradients=gradients, weights=weights
        )
    checks.check_prepared(where, prepared, batch, prediction, batch.next_obs.shape[-1:])
    nll = negative_log_likelihood(prediction, batch)
    return jnp.mean(jnp.sum(prepared * nll[..., :-1], axis=-1) + nll[..., -1])
